"""What every experiment is given, its sizes and where models are kept, and the figures it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulations.bench.models import model_path

MALLOC_DEFAULT, MALLOC_NO_MMAP = "default_malloc", "malloc_without_mmap"


@dataclass(frozen=True)
class Settings:
    """Sizes of all experiments.

    Attributes
    ----------
    tiny
        Tiny models of random weights in place of the real shapes, for a check that all works.
    speed_models, scale_models
        Which models are measured.
    mallocs
        Which allocators speed is measured with: see ``experiments.NO_MMAP_ENVIRONMENT``.
    pairs, warm_up
        Timed steps of each contest, and steps before them.
    speed_clients, speed_rows, speed_length
        Size of a step in the experiments on speed.
    text_scenarios
        Whose texts are trained on as they are.
    bits_scenarios, bits_rows, bits_epochs, bits_seeds
        Whose bits at the cut are measured, on how many training rows, how often and with how many
        seeds.
    edge_rows, edge_length
        Size of a client's batch in the experiments on memory.
    scale_clients, scale_rows, scale_length, scale_hosts
        Size of a step with many clients, and processes that host them.
    overlap_models, overlap_clients
        Which models are measured in halves of so many clients.
    robust_models, robust_clients
        Which models are measured with robust averages, with how many clients.
    weights_models
        Which models' frozen blocks are held in fewer bits beside fp32.
    weights_scenarios, weights_steps
        What is trained over such blocks, for how many steps.
    generate_models
        Which models write: shapes of GPT-2 and SmolLM2-135M with random weights, TinyStories.
    generate_clients, generate_prompt, generate_tokens
        Clients that write, tokens of a prompt, and tokens that each writes.
    generate_text
        Tokens that each client writes end to end, where a short text would be mostly its prompt.
    agreement_models, agreement_texts, agreement_tokens
        Which models' greedy tokens are held against few bits at the cut, over how many texts, and
        how many tokens the models go on with each.
    slow_link_models, slow_link_pairs, slow_link_texts, slow_link_tokens
        Which models write over a slow link with drafts and without, in how many pairs, of how many
        people's texts each, or of one text of so many tokens in which nothing repeats.
    leave_models, leave_pairs, leave_texts, leave_tokens
        Which models' tokens leave early, how often beside all blocks, in how many texts of how many
        tokens.
    exchange_bytes, exchanges, idle_streams
        Size and number of the timed exchanges, and number of the idle streams.
    """

    tiny: bool = False
    speed_models: tuple[str, ...] = ("gpt2", "minilm")
    scale_models: tuple[str, ...] = ("minilm", "decoder", "tinystories")
    mallocs: tuple[str, ...] = (MALLOC_DEFAULT, MALLOC_NO_MMAP)
    pairs: int = 5
    warm_up: int = 1
    speed_clients: int = 4
    speed_rows: int = 4
    speed_length: int = 128
    text_scenarios: tuple[str, ...] = ("sst2-minilm", "agnews-minilm", "e2e-tinystories")
    bits_scenarios: tuple[str, ...] = ("sst2-minilm", "e2e-tinystories")
    bits_rows: int = 1600
    bits_epochs: int = 5
    bits_seeds: int = 3
    edge_rows: int = 4
    edge_length: int = 64
    scale_clients: int = 64
    scale_rows: int = 4
    scale_length: int = 32
    scale_hosts: int = 2
    overlap_models: tuple[str, ...] = ("tinystories",)
    overlap_clients: int = 8
    robust_models: tuple[str, ...] = ("minilm", "decoder")
    robust_clients: int = 8
    weights_models: tuple[str, ...] = ("minilm", "gpt2")
    weights_scenarios: tuple[str, ...] = ("e2e-tinystories",)
    weights_steps: int = 50
    generate_models: tuple[str, ...] = ("gpt2", "smollm2", "tinystories")
    generate_clients: int = 8
    generate_prompt: int = 48
    generate_tokens: int = 12
    generate_text: int = 48
    agreement_models: tuple[str, ...] = ("tinystories", "smollm2-instruct")
    agreement_texts: int = 48
    agreement_tokens: int = 64
    slow_link_models: tuple[str, ...] = ("tinystories",)
    slow_link_pairs: int = 5
    slow_link_texts: int = 5
    slow_link_tokens: int = 100
    leave_models: tuple[str, ...] = ("tinystories", "smollm2-instruct")
    leave_pairs: int = 3
    leave_texts: int = 4
    leave_tokens: int = 32
    exchange_bytes: int = 1_000_000
    exchanges: int = 60
    idle_streams: int = 256


QUICK = Settings(
    tiny=True,
    speed_models=("gpt2",),
    scale_models=("minilm",),
    mallocs=(MALLOC_NO_MMAP,),
    pairs=2,
    warm_up=1,
    speed_clients=1,
    speed_rows=2,
    speed_length=16,
    text_scenarios=("sst2-minilm",),
    bits_scenarios=("quickstart",),
    bits_rows=160,
    bits_epochs=1,
    bits_seeds=1,
    edge_rows=2,
    edge_length=16,
    scale_clients=4,
    scale_rows=2,
    scale_length=8,
    scale_hosts=1,
    overlap_models=("gpt2",),
    overlap_clients=2,
    robust_models=("decoder",),
    robust_clients=3,
    weights_models=("gpt2",),
    weights_scenarios=("quickstart",),
    weights_steps=1,
    generate_models=("gpt2",),
    generate_clients=2,
    generate_prompt=4,
    generate_tokens=4,
    generate_text=6,
    agreement_models=("gpt2",),
    agreement_texts=2,
    agreement_tokens=4,
    slow_link_models=("gpt2",),
    slow_link_pairs=2,
    slow_link_texts=1,
    slow_link_tokens=6,
    leave_models=("gpt2",),
    leave_pairs=1,
    leave_texts=1,
    leave_tokens=3,
    exchanges=5,
    idle_streams=8,
)


Tick = Callable[[], None]


@dataclass(frozen=True)
class Context:
    """Sizes, and where models of random weights are kept between experiments."""

    settings: Settings
    folder: Path

    def model(self, name: str) -> str:
        """Return the scenario path of a model."""
        return model_path(name, self.folder, tiny=self.settings.tiny)


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    name
        Dotted: experiment, model, link and so on, and last what was measured.
    value
        Finite.
    unit
        ``tokens/s``, ``s``, ``ms``, ``MiB``, ``ratio``, ...
    at_least, at_most
        Target, where there is one.
    quartile_1, quartile_3
        Spread over the pairs of steps, for a median of ratios.
    """

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    quartile_1: float | None = None
    quartile_3: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"figure {self.name} is {self.value}")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high

    @property
    def target(self) -> str:
        """The target in words, or nothing."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the name and absent targets."""
        return {k: v for k, v in asdict(self).items() if k != "name" and v is not None}

    @classmethod
    def from_dict(cls, name: str, fields: Mapping[str, Any]) -> Figure:
        """Read what ``to_dict`` returned."""
        return cls(name, **fields)
