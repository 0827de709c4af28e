"""Scenarios, studies and benchmarks."""
