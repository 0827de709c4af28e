"""Averages over clients that a few hostile ones cannot move far."""
