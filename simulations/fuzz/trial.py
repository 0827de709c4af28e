"""A scenario that has been run once in this process, as its oracles look at it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.state_store import ClientStateStore
from fedlora.config import Scenario, scenario_to_toml
from fedlora.link import Frame
from fedlora.privacy.mechanisms import Mechanism, mechanism_of
from fedlora.report import RoundRecord, RunFolder
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.compute import AdapterState
from fedlora.server.results import write_results
from fedlora.tasks import Sample
from simulations.in_process import Federation, Handler, Record

Alter = Callable[[int, Frame], Frame]
"""Changes what a client, by its number, answers."""

UNLIKE = ("seconds", "wire_bytes")
"""What of a round's record is of the machine, or of who keeps checkpoints."""


class _Stop(Exception):
    """Stands for the end of all processes after a round."""


class FolderRecord(Record):
    """Keeps rounds and events in memory, and rounds in a run's folder too."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        super().append_round(record)
        self.folder.append_round(record)


class Run:
    """A federation in this process, with a run's folder and checkpoints.

    Parameters
    ----------
    scenario
        What to run.
    place
        Where the run's folder, checkpoints and clients' states are; one that exists goes on.
    workers
        Clients that compute side by side.
    alter
        See ``Alter``.
    ledgers
        Whether each client keeps a ledger in ``place``.
    devices
        Whether clients take part as devices do, whose door allows what their owner does.
    """

    def __init__(
        self,
        scenario: Scenario,
        place: Path,
        *,
        workers: int = 1,
        alter: Alter | None = None,
        ledgers: bool = False,
        devices: bool = False,
    ) -> None:
        self.scenario, self.place = scenario, place
        folder = place / "run"
        self.folder = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
        self.record = FolderRecord(self.folder)
        self.checkpoints = Checkpoints(self.folder.checkpoint)
        terms = {
            number: OwnerTerms(
                ledger=self.ledger(number), deployed=devices, scores=scenario.evaluate.scores
            )
            for number in range(scenario.federation.clients if ledgers else 0)
        }
        with mock.patch("fedlora.split.prepacked._SMALLEST", 1):  # models here are tiny
            self.federation = Federation(
                scenario, self.record, workers, partial(self._handler, alter), terms, run="fuzz"
            )
        self.results: Mapping[str, Any] = {}

    def ledger(self, number: int) -> Path:
        """Return where a client's ledger is."""
        return self.place / f"ledger-{number}"

    def _handler(self, alter: Alter | None, client: EdgeClient) -> Handler:
        store = ClientStateStore(client, self.checkpoints.clients / client.name)
        if alter is None:
            return store.handle
        return lambda frame: alter(int(client.name), store.handle(frame))

    def train(self, stop_after: int = 0) -> Run:
        """Train from the last checkpoint, or the start, to the end or through a round."""
        training, state = self.federation.server.training, self.checkpoints.latest()

        def after_round() -> None:
            self.checkpoints.save(training)
            if training.done == stop_after:
                raise _Stop

        training.after_round = after_round
        restore = partial(self.checkpoints.restore, training, state) if state else None
        try:
            training.run(restore)
            self.results = self.federation.server.end()
        except _Stop:
            self.close()
        return self

    def close(self) -> None:
        """Let go of ledgers, as the end of the clients' processes would."""
        for client in self.federation.clients:
            client.release.close()

    def write(self) -> RunFolder:
        """Write what a finished run leaves, as ``fedlora export`` and ``infer`` read it."""
        self.folder.write_scenario(scenario_to_toml(self.scenario))
        labels = list(self.federation.parts.scenario.task.labels)
        told = {
            name: {**own, "classes": labels, "labels": [], "label_rows": []}
            for name, own in self.results.items()
        }
        write_results(self.folder, self.federation.server, told)
        return self.folder

    @property
    def adapter(self) -> AdapterState:
        """The adapter as it is now."""
        return self.federation.server.engine.adapter()

    @property
    def heads(self) -> list[list[torch.Tensor]]:
        """Each client's head as it is now."""
        return [
            [p.detach().clone() for p in client.head.module.parameters()]
            for client in self.federation.clients
        ]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What was recorded of the rounds, without what is the machine's."""
        plain = json.loads(json.dumps(self.record.rounds))
        return [{k: v for k, v in own.items() if k not in UNLIKE} for own in plain]

    def losses(self) -> list[float]:
        """Return the training loss of every step, where clients tell it."""
        steps = (e for e in self.record.events if e["event"] == "step" and e["phase"] == "train")
        return [step["loss"] for step in steps if step["loss"] is not None]


@dataclass
class Trial:
    """A run that has ended, and how it began.

    Attributes
    ----------
    run
        It.
    place
        Where its oracles may write.
    initial
        The adapter that it began with.
    heads
        The heads that its clients began with.
    kept
        What oracles have found out for one another.
    """

    run: Run
    place: Path
    initial: AdapterState
    heads: list[list[torch.Tensor]]
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: Scenario, place: Path) -> Trial:
        """Build a federation; it is still to be trained."""
        run = Run(scenario, place / "first")
        return cls(run, place, _copy(run.adapter), run.heads)

    @property
    def scenario(self) -> Scenario:
        """What was run, with the classes filled in."""
        return self.run.federation.parts.scenario

    @property
    def federation(self) -> Federation:
        """What was run."""
        return self.run.federation

    @property
    def noisy(self) -> bool:
        """Whether noise was drawn that nobody can draw again."""
        privacy = self.scenario.privacy
        return privacy.enabled and privacy.insecure_noise_seed is None

    @property
    def mechanism(self) -> Mechanism | None:
        """The run's privacy mechanism."""
        return mechanism_of(self.scenario.privacy)

    @property
    def everybody(self) -> bool:
        """Whether every client takes part in every round."""
        federation = self.scenario.federation
        drawn = federation.clients_per_round or federation.clients
        return drawn == federation.clients and self.scenario.channel.schedule.scheduler == "all"

    def samples(self, client: EdgeClient, *, held_out: bool = False) -> list[Sample]:
        """Return a client's samples."""
        return client.door.truth(client.held_out if held_out else client.train)

    def again(self, name: str, scenario: Scenario | None = None, **how: Any) -> Run:
        """Run the scenario, or another one, from the start in a place of its own."""
        return Run(scenario or self.run.scenario, self.place / name, **how).train()


def _copy(adapter: AdapterState) -> AdapterState:
    return {name: tensor.detach().clone() for name, tensor in adapter.items()}


def equal(a: AdapterState, b: AdapterState) -> bool:
    """Tell whether two adapters are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def is_factor(name: str) -> bool:
    """Tell whether a tensor of an adapter is an A or a B; others are what ``lora.also`` names."""
    return name.endswith((".A", ".B"))


def difference(a: object, b: object, path: str = "") -> str:
    """Return where two tables first differ, or nothing."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = (difference(a.get(k), b.get(k), f"{path}.{k}") for k in {**a, **b})
        return next((text for text in found if text), "")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        found = (difference(x, y, f"{path}[{i}]") for i, (x, y) in pairs)
        return next((text for text in found if text), "")
    same = a == b or (a != a and b != b)  # noqa: PLR0124  # NaN
    return "" if same else f"{path.lstrip('.')} is {str(a)[:50]} and {str(b)[:50]}"
