"""Recordings in each format that ``channel.model = "trace"`` reads; none was measured."""
