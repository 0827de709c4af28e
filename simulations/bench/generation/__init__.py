"""Generation: tokens a second beside one after the other and beside PEFT, and what drafts bring."""

from simulations.bench.generation.speed import generate_in_process, ticks

__all__ = ["generate_in_process", "ticks"]
