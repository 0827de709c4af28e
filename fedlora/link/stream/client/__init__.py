"""The device's end of the stream."""
