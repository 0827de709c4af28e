"""The server's part of the model: forward, backward, adapters, shared head."""
