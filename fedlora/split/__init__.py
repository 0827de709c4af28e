"""Cutting a transformer, and loading only the part that a side needs."""
