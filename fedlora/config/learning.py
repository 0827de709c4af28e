"""The scenario's sections on what is learnt: model, task, adapters, training, head."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from fedlora.config.forecast import ForecastConfig
from fedlora.config.ranges import check_ranges, within
from fedlora.errors import require, shown


@dataclass(frozen=True)
class ModelConfig:
    """Where the checkpoint is and where it is cut.

    Attributes
    ----------
    path
        Local folder, ``package:NAME/SUB/FOLDER`` inside an installed package, or a hub name.
    dtype
        Precision of the frozen weights and of the server's compute.
    weights
        In how many bits the server keeps the matrices of its blocks, which are made dense for each
        product: ``bf16``, ``int8`` (by torchao) or ``nf4`` (by bitsandbytes; QLoRA); ``fp32``
        keeps them in ``dtype``. Adapters, norms and the clients' blocks stay in ``dtype``.
    client_front, client_back
        Number of frozen decoder blocks that stay on the client before and after the server's part.
    server_norm
        Whether the server applies a language model's final norm, so that representations come down
        after it, where few bits lose far less. A classifier's it applies anyway.
    """

    path: str = "package:simulations/quickstart/decoder"
    dtype: Literal["fp32", "bf16"] = "fp32"
    weights: Literal["fp32", "bf16", "int8", "nf4"] = "fp32"
    client_front: int = within(0, 0, 1000)
    client_back: int = within(0, 0, 1000)
    server_norm: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        require(
            not (self.server_norm and self.client_back),
            f"model.server_norm is true, and model.client_back leaves {self.client_back} blocks on "
            "the client, which come before the final norm; set one of them to false or 0",
        )

    @property
    def few_bits(self) -> Literal["bf16", "int8", "nf4"] | None:
        """Form of the server's matrices where they are kept in fewer bits than ``dtype``'s."""
        if self.weights == self.dtype:
            return None
        return None if self.weights == "fp32" else self.weights

    @property
    def precision(self) -> str:
        """What both sides must agree on: ``dtype``, and the form of the matrices if another."""
        return f"{self.dtype}, {self.few_bits}" if self.few_bits else self.dtype


@dataclass(frozen=True)
class TaskConfig:
    """What is learnt.

    Attributes
    ----------
    kind
        ``classification``, ``causal_lm``, ``forecast``, or ``module:Class`` of a task plug-in,
        whose inputs may be other than texts.
    pool
        How the server pools a row for classification: last token, mean over tokens, or first (CLS).
    max_length
        Longest sample in tokens; longer texts are cut.
    labels
        Names of the classes in order; empty means: all that occur in the training data, sorted.
        A deployment, where nobody sees all data, must name them.
    forecast
        See ``ForecastConfig``.
    """

    kind: str = "classification"
    pool: Literal["last", "mean", "cls"] = "last"
    max_length: int = within(64, 2, 1 << 24)
    labels: tuple[str, ...] = ()
    forecast: ForecastConfig = field(default_factory=ForecastConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "task.")
        # counted once: a server names as many as it likes, and each device looks at them first
        twice = next((name for name, n in Counter(self.labels).items() if n > 1), None)
        require(
            twice is None,
            f"task.labels names {shown(twice)} more than once; name each class once",
        )


@dataclass(frozen=True)
class LoraConfig:
    """The adapters on the server.

    Attributes
    ----------
    r_max
        Largest rank; every projection's A and B have this many components, of which a client uses
        the first r.
    alpha
        LoRA scaling numerator; the scale is alpha / r_max whatever the rank.
    dropout
        Dropout on the adapter's input.
    targets
        Names of the modules to adapt (suffixes, as in PEFT), or ``all-linear``.
    freeze_a
        Keep A as it was drawn and train B alone (FFA-LoRA, arXiv 2403.12313): half the gradients
        that noise can reach, and a product B A that is linear in it.
    start
        Folder of a PEFT LoRA adapter to begin from, for example one trained on public data; empty:
        A is drawn and B is 0. Paths are those of ``model.path``.
    also
        What of the server's blocks trains whole, beside the adapters, by the mean of all clients'
        gradients: ``norm``, the gains and offsets of their norms, ``positions``, learned ones.
    """

    r_max: int = within(8, 1, 4096)
    alpha: float = within(16.0, 1e-6, 1e6)
    dropout: float = within(0.0, 0.0, 0.9999)
    targets: tuple[str, ...] = ("all-linear",)
    freeze_a: bool = False
    start: str = ""
    also: tuple[Literal["norm", "positions"], ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "lora.")
        require(
            len(set(self.also)) == len(self.also),
            f"lora.also is {list(self.also)}; name each once",
        )
        require(
            bool(self.targets),
            "lora.targets is empty; name modules such as q_proj, or all-linear",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Rounds, steps and the optimiser.

    Attributes
    ----------
    rounds, steps
        Number of rounds, and optimiser steps in each.
    batch_size
        Rows that each client contributes to a step.
    lr, head_lr
        Peak learning rates of the adapters and of the head (0: the same as ``lr``).
    warmup_steps, schedule
        Linear warm-up, then ``constant``, ``linear`` or ``cosine`` decay to 0 at the last step.
    weight_decay, clip_norm
        Decoupled weight decay; clipping of the averaged gradient's global norm (0: none).
    accumulate
        Exchanges whose gradients are added up for one optimiser step.
    embedding
        Whether each client also trains its token embedding, or what its task has in place of it
        (costs a second exchange a step).
    overlap
        Whether the server goes over one half of a step's clients while the other half computes and
        sends. What is learnt is the same up to the order in which gradients are added.
    """

    rounds: int = within(5, 1, 999_999)
    steps: int = within(20, 1, 10**6)
    batch_size: int = within(4, 1, 10**6)
    lr: float = within(1e-3, 1e-30, 100.0)
    head_lr: float = within(0.0, 1e-30, 100.0, zero="the same as train.lr")
    warmup_steps: int = within(0, 0, 10**12)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = within(0.0, 0.0, 1e4)
    clip_norm: float = within(0.0, 1e-12, 1e12, zero="no clipping")
    accumulate: int = within(1, 1, 10**6)
    embedding: bool = False
    overlap: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "train.")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.rounds * self.steps

    def learning_rate(self, step: int, *, head: bool = False) -> float:
        """Return the learning rate of optimiser step ``step``, counted from 0 over the run."""
        peak = self.head_lr if head and self.head_lr > 0 else self.lr
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if self.schedule == "linear":
            return peak * (1 - progress)
        if self.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        return peak


@dataclass(frozen=True)
class FrontConfig:
    """What makes vectors of samples on the clients, where ``train.embedding`` lets it train.

    Attributes
    ----------
    share
        ``personal``: every client its own; ``round``: averaged at the end of a round; ``step``:
        gradients averaged every step, so that all fronts stay equal.
    """

    share: Literal["personal", "round", "step"] = "personal"


@dataclass(frozen=True)
class HeadConfig:
    """The task head on the clients.

    Attributes
    ----------
    share
        ``personal``: every client its own; ``round``: averaged at the end of a round; ``step``:
        gradients averaged every step, so that all heads stay equal.
    train
        Whether it trains; ``auto`` trains a classification head and freezes a language-model head.
    """

    share: Literal["personal", "round", "step"] = "personal"
    train: Literal["auto", "yes", "no"] = "auto"
