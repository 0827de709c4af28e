"""The best round so far, kept for the end of a run, and when to end it early."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fedlora.config import EvaluateConfig

if TYPE_CHECKING:
    from fedlora.server.compute import SharedHead, SplitEngine

log = logging.getLogger("fedlora.server")


class BestRound:
    """Remembers the round with the best held-out metric.

    Parameters
    ----------
    config
        Whether the best round is kept, and how long no better one is waited for.

    Attributes
    ----------
    round
        Number of the best round so far; 0 before the first.
    metric
        Its metric.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self._keeps = config.keep == "best"
        self._patience = config.patience
        self.round = 0
        self.metric: float | None = None
        self._waited = 0
        self._adapter: dict[str, torch.Tensor] = {}
        self._head: dict[str, torch.Tensor] = {}
        self._evaluated: Mapping[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether ``evaluate.patience`` evaluations in a row were no better."""
        return bool(self._patience) and self._waited >= self._patience

    def see(
        self,
        round_: int,
        metric: float | None,
        *,
        higher: bool,
        engine: SplitEngine,
        head: SharedHead | None,
        evaluated: Mapping[str, Any] | None,
    ) -> None:
        """Take note of a round; a metric that is no finite number is never better.

        Parameters
        ----------
        round_, metric
            The round, and its held-out metric; None where it was not evaluated.
        higher
            Whether more of the metric is better.
        engine, head
            Hold the adapter and the common head.
        evaluated
            The counts behind the metric.
        """
        if metric is None:
            return
        if math.isfinite(metric) and (
            self.metric is None or (metric > self.metric if higher else metric < self.metric)
        ):
            self.round, self.metric, self._waited = round_, metric, 0
            if self._keeps:
                self._adapter = engine.adapter()
                self._head = _copied(head)
                self._evaluated = evaluated
            return
        self._waited += 1
        if self.over:
            log.info(
                "training ends after round %d: none of the last %d evaluations was better than "
                "that of round %d",
                round_,
                self._waited,
                self.round,
            )

    def restore(
        self, engine: SplitEngine, head: SharedHead | None
    ) -> tuple[int, Mapping[str, Any] | None] | None:
        """Put adapter and head back to the best round, where that is to be kept.

        Returns
        -------
        tuple or None
            The round and its counts; None where the last round stays.
        """
        if not self._keeps or not self.round:
            return None
        engine.load_adapter(self._adapter)
        if head is not None:
            for name, parameter in head.parameters.items():
                parameter.data.copy_(self._head[name])
        log.info("the adapter of round %d is kept, whose metric was best", self.round)
        return self.round, self._evaluated

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "round": self.round,
            "metric": self.metric,
            "waited": self._waited,
            "adapter": self._adapter,
            "head": self._head,
            "evaluated": self._evaluated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.round, self.metric = int(state["round"]), state["metric"]
        self._waited = int(state["waited"])
        self._adapter, self._head = dict(state["adapter"]), dict(state["head"])
        self._evaluated = state["evaluated"]


def _copied(head: SharedHead | None) -> dict[str, torch.Tensor]:
    parameters = {} if head is None else head.parameters
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
