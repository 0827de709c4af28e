"""Try a robust average on honest and hostile clients, and say what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from fedlora.errors import described
from fedlora.machine import stretch
from fedlora.plugin_finding import PluginFinding, first_findings
from fedlora.robust.base import Block, RobustAverage

_SHAPES = ((3, 5), (2, 7))  # components and width of the blocks of a step
_HOSTILE = (0, 1, 2)
_LIES = (1e3, 1e15, -1e30)
_FAR = 10.0  # times the distance between honest clients that a lie may move an average
_CLOSE = 1e-5
_LARGE, _SLOW_S = (64, 1024), 1.0


def check_average(make: Callable[[int], object]) -> list[str]:
    """Try an average: what it gives for honest clients, and how far hostile ones move it.

    Parameters
    ----------
    make
        The class, or what returns an average for a number of hostile clients.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the average.
    """
    for hostile in _HOSTILE:
        try:
            average = make(hostile)
        except (Exception, SystemExit) as error:
            why = f"it cannot be made for {hostile} hostile clients ({described(error)})"
            return [f"{why}; expected an average"]
        if not isinstance(average, RobustAverage):
            return [f"{average!r:.80} is none; give a class that inherits from RobustAverage"]
        parts = (_shapes, _agreement, _order, _rest, _lies, _pace)
        if findings := first_findings(partial(part, average, hostile) for part in parts):
            return [f"{text} (hostile = {hostile})" for text in findings]
    return []


def _pace(average: RobustAverage, hostile: int) -> Iterator[str]:
    """Time a step of a small model: all clients wait for it."""
    generator = torch.Generator().manual_seed(3)
    clients, (components, width) = _clients(hostile), _LARGE
    values = torch.randn(clients, components, width, generator=generator)
    block = Block(values, torch.ones(clients, components, dtype=torch.bool))
    began = time.monotonic()
    _average(average, [block], torch.ones(clients))
    took_s = time.monotonic() - began
    if took_s > _SLOW_S * stretch():
        yield (
            f"average takes {took_s:.1f} s for {components} components of {width} numbers; "
            f"expected under {_SLOW_S:g} s, as every step waits for it"
        )


def _clients(hostile: int) -> int:
    return 2 * hostile + 3


def _blocks(clients: int, seed: int = 0) -> list[Block]:
    """Draw gradients of clients around a common one; all have all components."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for components, width in _SHAPES:
        common = torch.randn(components, width, generator=generator)
        noise = 0.1 * torch.randn(clients, components, width, generator=generator)
        blocks.append(Block(common + noise, torch.ones(clients, components, dtype=torch.bool)))
    return blocks


def _average(
    average: RobustAverage, blocks: Sequence[Block], weights: torch.Tensor
) -> list[torch.Tensor]:
    before = [(block.values.clone(), block.present.clone()) for block in blocks]
    try:
        found = average.average(blocks, weights)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"average raised {described(error)}; expected a tensor a block"
        ) from error
    if any(
        not (torch.equal(block.values, values) and torch.equal(block.present, present))
        for block, (values, present) in zip(blocks, before, strict=True)
    ):
        raise PluginFinding(
            "average has changed its input; expected that it copies what it changes"
        )
    if not isinstance(found, list) or len(found) != len(blocks):
        raise PluginFinding(
            f"average returned {found!r:.60}; expected a list with a tensor a block"
        )
    for block, own in zip(blocks, found, strict=True):
        shape = tuple(block.values.shape[1:])
        if not isinstance(own, torch.Tensor) or tuple(own.shape) != shape:
            raise PluginFinding(f"average gave {own!r:.60} for a block; expected a tensor {shape}")
        if not torch.isfinite(own).all():
            raise PluginFinding("average gave what is not finite; expected finite numbers")
    return found


def _shapes(average: RobustAverage, hostile: int) -> Iterator[str]:
    clients = _clients(hostile)
    weights = torch.ones(clients)
    one, other = (_average(average, _blocks(clients), weights) for _ in range(2))
    if not all(map(torch.equal, one, other)):
        yield "average gives other numbers for the same gradients; expected the same bits"


def _agreement(average: RobustAverage, hostile: int) -> Iterator[str]:
    """Where all say the same, that is the average, whatever the weights."""
    clients = _clients(hostile)
    blocks = [Block(b.values[:1].expand_as(b.values).clone(), b.present) for b in _blocks(clients)]
    weights = torch.arange(1.0, clients + 1)
    for block, found in zip(blocks, _average(average, blocks, weights), strict=True):
        if not torch.allclose(found, block.values[0], rtol=_CLOSE, atol=_CLOSE):
            yield (
                "average of clients that all say the same is something else; expected just that, "
                "not a sum"
            )


def _order(average: RobustAverage, hostile: int) -> Iterator[str]:
    clients = _clients(hostile)
    blocks, weights = _blocks(clients), torch.arange(1.0, clients + 1)
    turned = [Block(b.values.flip(0), b.present.flip(0)) for b in blocks]
    pairs = zip(
        _average(average, blocks, weights),
        _average(average, turned, weights.flip(0)),
        strict=True,
    )
    if not all(torch.allclose(a, b, rtol=_CLOSE, atol=_CLOSE) for a, b in pairs):
        yield "average depends on the order of the clients; expected that it does not"


def _rest(average: RobustAverage, hostile: int) -> Iterator[str]:
    """Look at components that nobody has, which rest, and that some have, who alone count."""
    clients = _clients(hostile) + 1
    whole, weights = _blocks(clients), torch.ones(clients)
    blocks = []
    for block in whole:
        present = block.present.clone()
        present[:, -1] = False  # nobody
        present[0, 0] = False  # all but one
        blocks.append(Block(block.values * present[:, :, None], present))
    found = _average(average, blocks, weights)
    if any(bool(own[-1].any()) for own in found):
        yield "average is not 0 for a component that no client has; expected zeros"
    without = [Block(b.values[1:], b.present[1:]) for b in blocks]
    pairs = zip(found, _average(average, without, weights[1:]), strict=True)
    if not all(torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-3) for a, b in pairs):
        yield (
            "a client that lacks a component changes the average there; expected that it does "
            "not count"
        )


def _lies(average: RobustAverage, hostile: int) -> Iterator[str]:
    """Hostile clients, as many as there may be, move no coordinate beyond the honest ones."""
    clients = _clients(hostile)
    for lie in _LIES if hostile else ():
        blocks = _blocks(clients)
        honest = [block.values[hostile:] for block in blocks]
        for block in blocks:
            block.values[:hostile] = lie
        weights = torch.ones(clients)
        weights[:hostile] = 1e6  # weights are what clients say, too
        for own, found in zip(honest, _average(average, blocks, weights), strict=True):
            apart = (own - own.mean(0)).norm(dim=2).max()
            moved = (found - own.mean(0)).norm(dim=1).max()
            if moved > _FAR * apart:
                yield (
                    f"{hostile} of {clients} clients that send {lie:g} move the average by "
                    f"{float(moved):.2g}, where honest ones are {float(apart):.2g} apart; expected "
                    "that it stays among them"
                )
                return
