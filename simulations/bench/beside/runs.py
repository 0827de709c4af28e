"""Several ways to run one scenario, each a step in turn, in one process."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.edge_client import EdgeClient
from fedlora.config import Scenario, with_overrides
from fedlora.report import RoundRecord
from simulations.bench.contest import Contest
from simulations.bench.context import Context, Settings, Tick
from simulations.bench.speed import contest_steps
from simulations.bench.workload import Load, Workload
from simulations.in_process import Handler, connect

Wrap = Callable[[EdgeClient], Handler]


def _as_they_are(client: EdgeClient) -> Handler:
    return client.handle


def small_load(context: Context, model: str) -> Load:
    """Return a few clients that classify short texts."""
    settings = context.settings
    return Load(
        context.model(model),
        "classification",
        settings.robust_clients,
        settings.scale_rows,
        settings.scale_length,
    )


def beside(
    settings: Settings,
    load: Load,
    tick: Tick,
    own: Sequence[str],
    others: Mapping[str, Sequence[str]],
    *,
    other_losses: Collection[str] = (),
    workers: int = 0,
    wrap: Wrap = _as_they_are,
) -> Contest:
    """Run a load in several ways, and return what their steps took.

    Parameters
    ----------
    settings, load, tick
        How many steps of what, and who is told of each.
    own
        Overrides of the participant ``SPLIT``.
    others
        Overrides of the others by name.
    other_losses
        Others whose loss is not the participant's.
    workers, wrap
        As for ``Federation``.
    """
    contest = Contest(settings.warm_up, settings.pairs, tick)
    contest.others_rows = other_losses
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        # One thread each: OpenMP's teams of several runs would wait for each other's cores.
        scenario = with_overrides(workload.scenario, ["compute.threads=1"])
        server = connect(with_overrides(scenario, own), contest, workers, wrap)
        contest.baselines = {
            name: OtherRun(with_overrides(scenario, overrides), workers, wrap)
            for name, overrides in others.items()
        }
        server.training.run()
        server.end()
    return contest


def ticks(settings: Settings) -> int:
    """Return the steps of a contest."""
    return contest_steps(settings)


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
        wrap: Wrap = _as_they_are,
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
