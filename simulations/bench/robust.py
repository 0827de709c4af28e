"""What robust averages cost, and what kept blocks save: runs step by step beside one another."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clients.edge_client import EdgeClient
from fedlora.config import Scenario, with_overrides
from fedlora.ranks import ClientReport, RankDecision, RankSpace, RankStrategy
from fedlora.report import RoundRecord
from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Tick
from simulations.bench.figures import Figure
from simulations.bench.settings import Settings
from simulations.bench.speed import contest_steps
from simulations.bench.workload import Load, Workload
from simulations.in_process import Handler, connect

AVERAGES: Mapping[str, list[str]] = {
    "median": ["robust.average=median"],
    "trimmed_mean": ["robust.average=trimmed_mean"],
    "norm_filter": ["robust.average=norm_filter"],
    "median_with_momentum": ["robust.average=median", "robust.momentum=0.9"],
}
REUSED_AT_LEAST = 1.3
_ANEW, _ALL = "computed_anew", "all_blocks_trained"


class OtherRun:
    """A run that goes a step further when it is asked to, as a baseline in a contest.

    Parameters
    ----------
    scenario
        What it does. Its last step is never asked for.
    workers, wrap
        As for ``Federation``.
    """

    def __init__(
        self,
        scenario: Scenario,
        workers: int = 0,
        wrap: Callable[[EdgeClient], Handler] = lambda client: client.handle,
    ) -> None:
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._loss = 0.0
        training = connect(scenario, self, workers, wrap).training
        threading.Thread(target=self._run, args=(training.run,), daemon=True).start()

    def _run(self, run: Any) -> None:
        self._go.acquire()
        run()

    def step(self, number: int) -> float:
        """See ``Baseline``."""
        del number
        self._go.release()
        self._stands.acquire()
        return self._loss

    def append_event(self, event: str, /, **fields: object) -> None:
        """Wait at the end of each step."""
        if event == "step":
            loss = fields["loss"]
            assert isinstance(loss, float)
            self._loss = loss
            self._stands.release()
            self._go.acquire()

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``; rounds are not kept."""


def robust_averages(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare a step with each robust average with one of the mean."""
    settings = context.settings
    load = Load(
        context.model(model),
        "classification",
        settings.robust_clients,
        settings.scale_rows,
        settings.scale_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        contest = Contest(settings.warm_up, settings.pairs, tick)
        # One thread each: OpenMP's teams of several runs would wait for each other's cores.
        scenario = with_overrides(workload.scenario, ["compute.threads=1"])
        server = connect(scenario, contest)
        contest.baselines = {
            name: OtherRun(with_overrides(scenario, overrides))
            for name, overrides in AVERAGES.items()
        }
        server.training.run()
        server.end()
    return [Figure("mean", contest.median_seconds(SPLIT), "s/step")] + [
        Figure(
            f"{name}_to_mean",
            contest.speed_ratio(SPLIT, name),
            "ratio",
            None,
            None,
            *contest.ratio_quartiles(SPLIT, name),
        )
        for name in AVERAGES
    ]


def ticks(settings: Settings) -> int:
    """Return the steps of the contest."""
    return contest_steps(settings)


class UpperHalf(RankStrategy):
    """Everybody has the largest rank in the upper half of the blocks, and 0 below."""

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """See ``RankStrategy``."""
        layers = [projection.layer for projection in space.projections]
        half = (max(layers) + 1) // 2
        ranks = [space.r_max if layer >= half else 0 for layer in layers]
        return {client: RankDecision(ranks) for client in clients}


def reused_blocks(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare steps from the second epoch on with those that compute the lower half each time.

    Every client has one batch of rows, so that an epoch is a step and the warm-up the first.
    """
    settings = context.settings
    load = Load(
        context.model(model),
        "classification",
        settings.robust_clients,
        settings.scale_rows,
        settings.scale_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        contest = Contest(settings.warm_up, settings.pairs, tick)
        contest.others_rows = {_ALL}  # another adapter, whose loss is another
        everywhere = with_overrides(workload.scenario, ["compute.threads=1"])
        half = with_overrides(everywhere, [f"ranks.strategy={__name__}:UpperHalf"])
        server = connect(with_overrides(half, ["compute.reuse_blocks=true"]), contest)
        contest.baselines = {_ANEW: OtherRun(half), _ALL: OtherRun(everywhere)}
        server.training.run()
        server.end()
    figures = [Figure("kept", contest.median_seconds(SPLIT), "s/step")]
    for name, target in ((_ANEW, REUSED_AT_LEAST), (_ALL, None)):
        ratio, spread = contest.speed_ratio(SPLIT, name), contest.ratio_quartiles(SPLIT, name)
        figures.append(Figure(f"kept_to_{name}", ratio, "ratio", target, None, *spread))
    return [*figures, Figure("loss_difference", contest.loss_difference, "relative", at_most=1e-4)]
