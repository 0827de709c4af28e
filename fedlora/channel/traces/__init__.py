"""Recordings of links as they are published: reading them, and what a link is at a time."""

from fedlora.channel.traces.reading import TRACE_FORMATS, read_recording
from fedlora.channel.traces.track import Packets, Recording, Track

__all__ = ["TRACE_FORMATS", "Packets", "Recording", "Track", "read_recording"]
