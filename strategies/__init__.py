"""Rank strategies, one readable file or folder each."""
