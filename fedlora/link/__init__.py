"""Frames, codecs, and the links that carry them between the engine and its clients."""
