"""Paired timing: a step of the split run, then a step of each baseline on the same batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection

import torch

from fedlora.report import RoundRecord
from fedlora.threads import on_threads
from simulations.bench.unsplit import Baseline

SPLIT = "split"


class Contest:
    """The recorder of a run, which times its steps and lets the baselines go in between.

    A step of the run is everything from the end of the baselines' last step: the forward, the
    exchange with all clients, the backward, the update. On a machine that others use, too, the
    ratio of two neighbouring steps is steadier than either, so ratios are medians over pairs.
    Baselines compute with as many of torch's threads as there were when they were entered.

    Parameters
    ----------
    warm_up
        Steps at the beginning that are not counted.
    pairs
        Steps after them that are.
    tick
        Called after each step.

    Attributes
    ----------
    baselines
        Who goes in between, by name.
    others_rows
        Baselines that train on rows of their own, whose loss is another.
    seconds, tokens
        What each participant's step took and trained, for each pair.
    tokens_of
        Tokens of a participant's last step; by default all have as many.
    """

    def __init__(self, warm_up: int, pairs: int, tick: Callable[[], None]) -> None:
        self.baselines = {}
        self.seconds: list[dict[str, float]] = []
        self.loss_difference = 0.0
        self.others_rows: Collection[str] = ()
        self.tokens_of: Callable[[str], int] = lambda _: 1
        self.tokens: list[dict[str, int]] = []
        self._counted = range(warm_up + 1, warm_up + pairs + 1)
        self._tick = tick
        self._mark = time.perf_counter()

    @property
    def baselines(self) -> dict[str, Baseline]:
        """See the class."""
        return self._baselines

    @baselines.setter
    def baselines(self, baselines: dict[str, Baseline]) -> None:
        # A run uses one thread for all but its engine's passes, and these are not within them.
        self._baselines, self._threads = baselines, torch.get_num_threads()

    def append_event(self, event: str, /, **fields: object) -> None:
        """Note the end of a step, and let the baselines make theirs."""
        if event != "step":
            return
        pair = {SPLIT: time.perf_counter() - self._mark}
        number, loss = fields["step"], fields["loss"]
        assert isinstance(number, int) and isinstance(loss, float)
        for name, baseline in self.baselines.items():
            with on_threads(self._threads):
                begun = time.perf_counter()
                theirs = baseline.step(number - 1)
                pair[name] = time.perf_counter() - begun
            if name not in self.others_rows:
                self.loss_difference = max(self.loss_difference, abs(loss - theirs) / abs(theirs))
        if number in self._counted:
            self.seconds.append(pair)
            self.tokens.append({name: self.tokens_of(name) for name in pair})
        self._tick()
        self._mark = time.perf_counter()

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``; rounds are not kept."""

    def ratio_quartiles(self, name: str, baseline: str) -> tuple[float, float]:
        """Return the first and third quartile of ``speed_ratio`` over the pairs."""
        first, _, third = statistics.quantiles(
            self._ratios(name, baseline), n=4, method="inclusive"
        )
        return first, third

    def median_seconds(self, name: str) -> float:
        """Return the median duration of one participant's step."""
        return statistics.median(pair[name] for pair in self.seconds)

    def tokens_per_second(self, name: str) -> float:
        """Return the median speed of one participant."""
        pairs = zip(self.tokens, self.seconds, strict=True)
        return statistics.median(tokens[name] / seconds[name] for tokens, seconds in pairs)

    def speed_ratio(self, name: str, baseline: str) -> float:
        """Return how many times as fast as a baseline a participant is: above 1, it is faster."""
        return statistics.median(self._ratios(name, baseline))

    def _ratios(self, name: str, baseline: str) -> list[float]:
        """Return the ratio of tokens a second in each pair."""
        return [
            (tokens[name] / seconds[name]) / (tokens[baseline] / seconds[baseline])
            for tokens, seconds in zip(self.tokens, self.seconds, strict=True)
        ]
