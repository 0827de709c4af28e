"""The server's end of the stream."""
