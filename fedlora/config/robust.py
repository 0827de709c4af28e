"""The scenario's section on hostile clients: what one of them may do to the common model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.config.ranges import check_ranges, within


@dataclass(frozen=True)
class RobustConfig:
    """How far a client that sends wrong gradients can reach.

    The two limits are announced: every client reads them in the scenario that it is sent.

    Attributes
    ----------
    row_clip
        The server scales each row's gradient at the cut down to this norm (0: as it comes). A row
        is a pooled sample, or for language modelling all tokens of a sample.
    head_clip
        The server scales a client's gradient of a head that is shared every step down to this norm
        times the client's samples (0: as it comes).
    average
        How the clients' gradients become one: ``mean`` over samples, or ``median``,
        ``trimmed_mean``, ``norm_filter`` over clients, or ``module:Class`` of a plug-in.
    hostile
        Number of clients in a step that may be hostile, for all but ``mean``. A component that
        fewer than 2 ``hostile`` + 1 clients train is left as it is.
    mix
        Whether each client's gradient is first replaced by the mean over its nearest neighbours,
        all but ``hostile``, without which a median over clients of different data learns little.
    momentum
        How much of each client's earlier gradients stays in what is averaged, from 0 (each step
        stands alone) to below 1; for all but ``mean``. It makes a gradient that is merely turned
        round stand out, and takes an adapter in fp32 for every client of the federation.
    options
        Keyword arguments of the average.
    """

    row_clip: float = within(0.0, 1e-12, 1e12, zero="no limit")
    head_clip: float = within(0.0, 1e-12, 1e12, zero="no limit")
    average: str = "mean"
    hostile: int = within(1, 1, 50_000)
    mix: bool = True
    momentum: float = within(0.0, 0.0, 0.9999)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, "robust.")

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's two on the server: where clients have momentum already it adds none."""
        return (0.0 if self.enabled and self.momentum else 0.9, 0.999)

    @property
    def enabled(self) -> bool:
        """Whether gradients are kept apart by client until they are averaged."""
        return self.average != "mean"
