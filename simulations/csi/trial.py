"""The trials of the case study: a model, how it learns, over how many sites, from which seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from fedlora.config import Scenario
from fedlora.split import model_folder
from simulations.csi import classical
from simulations.csi.fedavg import federated_average
from simulations.csi.metrics import nmse, scores
from simulations.csi.networks import NARROW, NETWORKS, network
from simulations.csi.split_training import train_split
from simulations.csi.training import Recipe, predict, train, trained_numbers
from simulations.csi.windows import Data, Windows

How = Literal["untrained", "own", "union", "federated"]
SPLIT = "split"
CLASSICAL = ("last value", "PAD, order 2", "PAD, order 8", "covariance, order 5")
AUTOREGRESSION = "autoregression"
GRUS = ("gru", *NARROW)
EQUAL_BYTES = (*GRUS, "ends")
"""Networks that are trained by FedAvg, within the bytes of the split run."""
LEAST_PASSES, PEER_BATCH = 60, 16
"""Over the samples, of networks that begin with nothing, and a site's samples of a step of theirs;
what they compute is not on the air.
"""
_SPLIT_S, _PEER_S = 28.0, 38.0
"""A trial that trains takes so long: of peers by the rows of ``results/cdl/``, on busy cores."""
TEST_SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)

Predictor = Callable[[Windows], torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """What to run.

    Attributes
    ----------
    model
        ``split``: the scenario's; or a peer.
    how
        ``own``: each site alone, on its samples, and tested on its own channels; ``union``: all
        samples in one place; ``federated``; ``untrained`` takes no samples at all.
    sites
        How many take part.
    seed
        Of weights and the order of samples.
    """

    model: str
    how: How
    sites: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells trials apart."""
        return self.model, self.how, self.sites, self.seed

    @property
    def trains(self) -> bool:
        """Whether anything is trained by steps, which is what takes time."""
        return self.how != "untrained" and self.model != AUTOREGRESSION

    @property
    def shipped_s(self) -> float:
        """About how long it takes with the scenario and the channels that ship, on one core."""
        if not self.trains:
            return 1.0
        return _SPLIT_S if self.model == SPLIT else _PEER_S

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return f"{self.model}, {self.how}, {self.sites} sites, seed {self.seed}"


@dataclass(frozen=True)
class Row:
    """What came of a trial, a line of ``trials.jsonl``.

    Attributes
    ----------
    model, how, sites, seed
        See ``Trial``.
    scores
        Over the test samples of all sites; see ``scores`` of ``simulations.csi.metrics``.
    nmse_by_snr
        NMSE with histories at other signal-to-noise ratios, in dB.
    curve
        After rounds: round, step, NMSE, bytes so far; empty where nothing is trained by steps.
    bytes_by_kind
        On the air in the whole run, of all sites, up and down.
    numbers
        That train, of a peer; of ``split`` those of front and head.
    seconds
        Wall-clock time.
    """

    model: str
    how: str
    sites: int
    seed: int
    scores: dict[str, Any]
    nmse_by_snr: dict[str, float]
    curve: list[dict[str, Any]]
    bytes_by_kind: dict[str, int]
    numbers: int
    seconds: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells trials apart."""
        return self.model, self.how, self.sites, self.seed

    @property
    def bytes(self) -> int:
        """On the air in the whole run."""
        return sum(self.bytes_by_kind.values())


def plan(sites: int, seeds: range, peers: bool = True) -> list[Trial]:
    """Return all trials; the split run stands before those that have its bytes.

    What the targets are about comes first, seed by seed, then more peers and fewer sites.

    Parameters
    ----------
    sites
        How many there are.
    seeds
        Of trials that draw something.
    peers
        Whether networks are compared with.
    """
    first = seeds[0]
    trials = [Trial(name, "untrained", sites, first) for name in CLASSICAL]
    trials += [Trial(AUTOREGRESSION, how, sites, first) for how in ("own", "union")]
    some = [count for count in (1, 2, 5) if count < sites]
    for seed in seeds:
        trials += [Trial(SPLIT, how, sites, seed) for how in ("federated", "union", "own")]
        trials += [Trial(name, "federated", sites, seed) for name in EQUAL_BYTES if peers]
    for seed in seeds if peers else ():
        trials += [Trial(SPLIT, "federated", count, seed) for count in some]
        for name in NETWORKS:
            trials += [Trial(name, how, sites, seed) for how in ("union", "own")]
    return trials


class Laboratory:
    """Runs trials on one scenario's data.

    Parameters
    ----------
    base
        The scenario.

    Attributes
    ----------
    data
        Its samples.
    """

    def __init__(self, base: Scenario) -> None:
        self._base = base
        self.data = Data(base)
        train_ = base.train
        epochs = train_.total_steps * train_.accumulate * train_.batch_size * len(self.data.sites)
        self._epochs = max(1, round(epochs / len(self.data.train)))
        self._noisy = {f"{snr:g}": self.data.test_at(snr) for snr in TEST_SNR_DB}

    def run(self, trial: Trial, split_bytes: int = 0) -> Row:
        """Run a trial in this process.

        Parameters
        ----------
        trial
            What to run.
        split_bytes
            Of the split run over as many sites, which FedAvg may not exceed.

        Raises
        ------
        FedloraError
            When the scenario cannot be used.
        """
        started = time.perf_counter()
        torch.manual_seed(trial.seed)
        curve: list[dict[str, Any]] = []
        kinds: dict[str, int] = {}
        numbers = 0
        if not trial.trains:
            predictor = self._closed(trial)
        elif trial.model == SPLIT:
            predictor, curve, kinds, numbers = self._split(trial)
        else:
            predictor, curve, kinds, numbers = self._network(trial, split_bytes)
        test = self.data.test
        return Row(
            **asdict(trial),
            scores=scores(predictor(test), test),
            nmse_by_snr={k: nmse(predictor(own), own.ahead) for k, own in self._noisy.items()},
            curve=curve,
            bytes_by_kind=kinds,
            numbers=numbers,
            seconds=round(time.perf_counter() - started, 1),
        )

    def _closed(self, trial: Trial) -> Predictor:
        if trial.model == AUTOREGRESSION:
            fit = classical.Autoregression.fit
            if trial.how == "union":
                return fit([self.data.train])
            return self._by_site({s: fit([self.data.train.of(s)]) for s in self._sites(trial)})
        if trial.model == "last value":
            return classical.last_value
        order = int(trial.model.rpartition(" ")[2])
        method = classical.covariance if trial.model.startswith("cov") else classical.prony
        return lambda windows: method(windows, order)

    def _split(self, trial: Trial) -> tuple[Predictor, list[dict[str, Any]], dict[str, int], int]:
        sites, base = self._sites(trial), self._base
        if trial.how == "own":
            own = {
                s: train_split(
                    base, self.data, [s], trial.seed, clients=1, test=self.data.test.of(s)
                )
                for s in sites
            }
            curve = _pooled([run.curve for run in own.values()], self._energies(sites))
            return self._by_site({s: run.predict for s, run in own.items()}), curve, {}, 0
        clients = 1 if trial.how == "union" else len(sites)
        run = train_split(base, self.data, sites, trial.seed, clients=clients, test=self.data.test)
        ends = run.federation.clients[0].head.shapes.values()
        kinds = {} if trial.how == "union" else dict(run.bytes_by_kind)
        return run.predict, run.curve, kinds, sum(shape.numel() for shape in ends)

    def _network(
        self, trial: Trial, split_bytes: int
    ) -> tuple[Predictor, list[dict[str, Any]], dict[str, int], int]:
        base, sites = self._base, self._sites(trial)
        parts = [self.data.train.of(site) for site in sites]
        test, curve = self.data.test, []

        def watch(round_: int, net: torch.nn.Module) -> None:
            curve.append({"round": round_, "nmse": nmse(predict(net, test), test.ahead)})

        def made() -> torch.nn.Module:
            torch.manual_seed(trial.seed)
            path = str(model_folder(base.model.path))
            return network(trial.model, base.task.forecast, path)

        if trial.how == "own":
            curves: list[list[dict[str, Any]]] = []
            nets = {}
            for site, part in zip(sites, parts, strict=True):
                curve, test = [], self.data.test.of(site)
                nets[site] = train(made(), part, self._recipe(trial, 1), trial.seed, watch)
                curves.append(curve)
            curve = _pooled(curves, self._energies(sites))
            numbers = trained_numbers(nets[sites[0]])
            by_site = {s: _predictor(net) for s, net in nets.items()}
            return self._by_site(by_site), curve, {}, numbers
        net = made()
        numbers, kinds = trained_numbers(net), {}
        if trial.how == "union":
            recipe = self._recipe(trial, len(sites))
            train(net, self.data.train, recipe, trial.seed, watch)
        else:
            rounds = max(1, split_bytes // (2 * 4 * numbers * len(sites)))
            recipe = self._recipe(trial, 1)
            kinds["weights"] = federated_average(net, parts, recipe, rounds, trial.seed, watch)
            for point in curve:
                point["bytes"] = kinds["weights"] * point["round"] // rounds
        return _predictor(net), curve, kinds, numbers

    def _recipe(self, trial: Trial, sites: int) -> Recipe:
        """Return how a network learns in a place with so many sites; ends as the split model."""
        train_ = self._base.train
        if trial.model == "ends":
            return Recipe(self._epochs, train_.batch_size * sites, lr=train_.lr)
        return Recipe(max(self._epochs, LEAST_PASSES), PEER_BATCH * sites)

    def _sites(self, trial: Trial) -> list[int]:
        return list(range(len(self.data.sites)))[: trial.sites]

    def _energies(self, sites: list[int]) -> list[float]:
        return [float(self.data.test.of(s).ahead.double().square().sum()) for s in sites]

    @staticmethod
    def _by_site(predictors: dict[int, Predictor]) -> Predictor:
        def predicted(windows: Windows) -> torch.Tensor:
            found = torch.full_like(windows.ahead, torch.nan)
            for site, predictor in predictors.items():
                own = windows.site == site
                found[own] = predictor(windows.take(own))
            return found

        return predicted


def _predictor(net: torch.nn.Module) -> Predictor:
    return lambda windows: predict(net, windows)


def _pooled(curves: list[list[dict[str, Any]]], energies: list[float]) -> list[dict[str, Any]]:
    """Return one curve of all sites: NMSE as a ratio of sums over them."""
    found = []
    for points in zip(*curves, strict=True):
        known = all(point["nmse"] is not None for point in points)
        pooled = None
        if known:
            errors = [p["nmse"] * e for p, e in zip(points, energies, strict=True)]
            pooled = sum(errors) / sum(energies)
        found.append({"round": points[0]["round"], "nmse": pooled})
    return found
