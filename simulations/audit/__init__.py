"""Attacks on a run, as an honest-but-curious server would make them on what it receives."""
