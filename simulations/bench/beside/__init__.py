"""Runs of one scenario in several ways, step by step beside one another."""
