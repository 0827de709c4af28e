"""Studies: what was measured for the documentation, each in a folder of its own."""
