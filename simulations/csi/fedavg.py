"""FedAvg through Flower: its server and strategy, with each site a client in this process."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.client import Client, NumPyClient
from flwr.common import DisconnectRes, FitRes, ndarrays_to_parameters
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from torch import nn

from simulations.csi.training import Recipe, Watch, batches_forever, go, steps_of, trained
from simulations.csi.windows import Windows

Arrays = list[npt.NDArray[np.float32]]
_FIRST, _STOP = "first", "stop"


def federated_average(
    network: nn.Module,
    parts: Sequence[Windows],
    recipe: Recipe,
    rounds: int,
    seed: int,
    watch: Watch | None = None,
) -> int:
    """Train a network in place by FedAvg (McMahan et al. 2017); AdamW starts anew every round.

    Parameters
    ----------
    network
        Predicts normalised steps; becomes the average.
    parts
        Samples of each site.
    recipe
        Its epochs are shared out between the rounds, as evenly as whole steps allow.
    rounds
        Averages, weighted by samples.
    seed
        Of the order of samples.
    watch
        Sees each average.

    Returns
    -------
    int
        Bytes of trained weights that sites were sent and sent, all together; Flower's own framing
        is not counted.
    """
    steps = recipe.epochs * steps_of(parts[0], recipe)
    edges = [round(steps * number / rounds) for number in range(rounds + 1)]
    sites = [
        _Site(network, part, recipe, steps, seed + 7919 * place) for place, part in enumerate(parts)
    ]
    manager = SimpleClientManager()
    for place, site in enumerate(sites):
        manager.register(_InProcess(str(place), site.to_client()))

    def evaluate(round_: int, arrays: Arrays, config: Mapping[str, Any]) -> None:
        del config
        _give(network, arrays)
        if watch is not None and round_ > 0:
            watch(round_, network)

    strategy = _InOrder(
        fraction_evaluate=0.0,
        min_fit_clients=len(sites),
        min_available_clients=len(sites),
        evaluate_fn=evaluate,
        on_fit_config_fn=lambda round_: {_FIRST: edges[round_ - 1], _STOP: edges[round_]},
        initial_parameters=ndarrays_to_parameters(_take(network)),
    )
    with _quietly():
        server = Server(client_manager=manager, strategy=strategy)
        server.set_max_workers(1)
        server.fit(num_rounds=rounds, timeout=None)
    return sum(site.bytes for site in sites)


class _Site(NumPyClient):  # type: ignore[misc]
    """A site, which holds samples and trains a whole network on them."""

    def __init__(
        self, network: nn.Module, part: Windows, recipe: Recipe, steps: int, seed: int
    ) -> None:
        self._network, self._recipe, self._steps = copy.deepcopy(network), recipe, steps
        self._samples = len(part)
        self._batches = batches_forever(part, recipe.batch_size, seed)
        self.bytes = 0

    def fit(self, arrays: Arrays, config: Mapping[str, int]) -> tuple[Arrays, int, dict[str, Any]]:
        """Train from the average over this round's steps, and return what came of it."""
        _give(self._network, arrays)
        optimizer = torch.optim.AdamW(trained(self._network), weight_decay=0.0)
        steps = range(config[_FIRST], config[_STOP])
        go(self._network, optimizer, self._batches, steps, self._steps, self._recipe)
        found = _take(self._network)
        self.bytes += sum(array.nbytes for array in (*arrays, *found))
        return found, self._samples, {}


class _InProcess(ClientProxy):  # type: ignore[misc]
    """Hands the requests of Flower's server to a client of this process."""

    def __init__(self, cid: str, client: Client) -> None:
        super().__init__(cid)
        self._client = client

    def get_properties(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        """See ``ClientProxy``."""
        return self._client.get_properties(ins)

    def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        """See ``ClientProxy``."""
        return self._client.get_parameters(ins)

    def fit(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        """See ``ClientProxy``."""
        return self._client.fit(ins)

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        """See ``ClientProxy``."""
        return self._client.evaluate(ins)

    def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        """See ``ClientProxy``; there is no connection to give up."""
        return DisconnectRes(reason="")


class _InOrder(FedAvg):  # type: ignore[misc]
    """Adds sites up in their order, as sums in fp32 depend on it; raises what a site raised."""

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> Any:
        """See ``FedAvg``."""
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure
        ordered = sorted(results, key=lambda result: int(result[0].cid))
        return super().aggregate_fit(server_round, ordered, failures)


def _take(network: nn.Module) -> Arrays:
    return [p.detach().numpy().copy() for p in trained(network)]


@torch.no_grad()
def _give(network: nn.Module, arrays: Arrays) -> None:
    for parameter, array in zip(trained(network), arrays, strict=True):
        parameter.copy_(torch.from_numpy(array.copy()))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what Flower says of each round off the screen."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
