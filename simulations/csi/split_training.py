"""The model of a scenario, trained over some of its sites, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.link import Codec, create_codec, pack, unpack
from fedlora.report import RoundRecord
from fedlora.server.compute import ClientRows
from simulations.csi.metrics import nmse
from simulations.csi.windows import Data, Windows
from simulations.in_process import Federation, Record


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Attributes
    ----------
    federation
        Server and clients, after the last round.
    curve
        For each round its number, steps so far, training loss, NMSE over the test samples given
        (None where it was not taken), the metric that the run itself took of these sites' test
        samples (None but at the end), and bytes of all clients so far, up and down.
    bytes_by_kind
        Of the whole run, such as ``up activation``.
    """

    federation: Federation
    curve: list[dict[str, Any]]
    bytes_by_kind: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Up and down, of all clients."""
        return sum(self.bytes_by_kind.values())

    def predict(self, windows: Windows) -> torch.Tensor:
        """Predict through the cut as clients would, by its codecs; in units of the data."""
        return _predict(self.federation, windows)


def train_split(
    base: Scenario, data: Data, sites: Sequence[int], seed: int, *, clients: int, test: Windows
) -> Trained:
    """Train a scenario over some sites' samples, in this process.

    Parameters
    ----------
    base
        The scenario, whose ends are common to all clients.
    data
        Its samples.
    sites
        Whose samples take part.
    seed
        Of model, partition and the order of samples.
    clients
        As many as sites, or 1 for all samples in one place.
    test
        What curves are taken on.

    Raises
    ------
    FedloraError
        When the scenario cannot be used, or a client was lost.
    """
    with TemporaryDirectory() as folder:
        run = scenario_over(base, data, sites, seed, clients, Path(folder))
        recorder = _Curve(test, every=base.evaluate.every)
        recorder.federation = federation = Federation(run, recorder, workers=1)
        server = federation.server
        server.training.run()
        if server.cohort.lost:
            raise FedloraError(f"a run lost clients: {server.cohort.reasons()}")
        server.end()
    bits = server.air.ledger.totals()["bits"]
    kinds = {f"{way} {kind}": n // 8 for way, own in bits.items() for kind, n in own.items()}
    return Trained(federation, recorder.curve, kinds)


def scenario_over(
    base: Scenario, data: Data, sites: Sequence[int], seed: int, clients: int, folder: Path
) -> Scenario:
    """Return the scenario over some sites' records, which are written into a folder.

    One place has the batches of all sites together, so that steps and passes stay the same.
    """
    ends = {"front": base.front.share, "head": base.head.share}
    for name, share in ends.items():
        if share == "personal":
            raise FedloraError(
                f"{name}.share is personal, and the study compares what sites have in common; set "
                "it to step or round"
            )
    names, column = [data.sites[number] for number in sites], base.partition.column
    files = {}
    for which in ("train", "test"):
        own = [r for r in data.records(which) if r[column] in names]
        place = folder / f"{which}.npz"
        arrays = {column: np.array([record[column] for record in own])}
        arrays["values"] = np.stack([record["values"] for record in own])
        with place.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        files[which] = str(place)
    kind = base.partition if clients > 1 else replace(base.partition, kind="iid")
    size = base.train.batch_size * (len(sites) if clients == 1 else 1)
    axes = ("record", "port", "time", "feature")
    return replace(
        base,
        seed=seed,
        data=replace(
            base.data,
            train=files["train"],
            test=files["test"],
            values=("values",),
            axes=axes,
            segment=0,
            max_rows=0,
        ),
        partition=kind,
        federation=replace(base.federation, clients=clients),
        train=replace(base.train, batch_size=size),
        evaluate=replace(base.evaluate, every=base.train.rounds, baseline=False),
        compute=replace(base.compute, threads=1),
    )


class _Curve(Record):
    """Takes NMSE and bytes after rounds."""

    federation: Federation

    def __init__(self, test: Windows, every: int) -> None:
        super().__init__()
        self._test, self._every = test, every
        self.curve: list[dict[str, Any]] = []
        self._bytes = 0

    def append_round(self, record: RoundRecord) -> None:
        """See ``Recorder``."""
        super().append_round(record)
        self._bytes += sum(n for own in record["bits"].values() for n in own.values()) // 8
        taken = record["round"] % self._every == 0
        point: dict[str, Any] = {
            "round": record["round"],
            "step": record["step"],
            "train_loss": record["train_loss"],
            "nmse": nmse(_predict(self.federation, self._test), self._test.ahead)
            if taken
            else None,
            "metric": record["metric"],
            "bytes": self._bytes,
        }
        self.curve.append(point)


@torch.no_grad()
def _predict(federation: Federation, windows: Windows) -> torch.Tensor:
    client, engine = federation.clients[0], federation.server.engine
    forecast, link = federation.server.scenario.task.forecast, federation.server.scenario.link
    up, down = (create_codec(**link.codec(name)) for name in ("activation", "representation"))
    parts = []
    for history in torch.split(windows.history, 64):
        count, places = len(history), forecast.places
        e = client.model.front.embedding(history.reshape(count, places, -1)).flatten(0, 1)
        rows = ClientRows(_carried(e, up), [places] * count, engine.full_ranks())
        (z,) = engine.forward([rows], train=False)
        hidden = client.model.to_head(_carried(z, down), [places] * count)
        parts.append(client.head.module(hidden.reshape(count, places, -1), history))
    return windows.in_units(torch.cat(parts))


def _carried(x: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Return vectors as they arrive."""
    return unpack(pack("x", x, codec), "x", codec, (x.shape[0], x.shape[1]))
