"""The rank study: its protocol, rows, claims, and what writes the tables of ``docs/results.md``."""
