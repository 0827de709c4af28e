"""Try a channel model or a predictor on what a run asks, in any order, and say what is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from fedlora.channel.channel import Channel
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.predict import ChannelPredictor, two_finite
from fedlora.channel.state import ChannelState
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError, described, shown
from fedlora.machine import stretch
from fedlora.plugin_finding import PluginFinding, first_findings

_ASKED = [(client, block) for client in (0, 1, 7) for block in (0, 1, 2, 40, 3, 5_000, 1)]
_SETTINGS = (
    ChannelConfig(model="checked"),
    ChannelConfig(model="checked", round_s=2.0, coherence_s=0.25, snr_db=(-3.0, 12.0)),
)
_AHEAD = (1, 4, 300, 1_000_000)  # blocks
_BLOCKS, _SLOW_S = 256, 1.0  # what a report's prediction is made from by default
_STEADY_DB, _NEAR_DB = (-20.0, 35.0), 10.0  # neither is the other, or its own power or amplitude


def check_channel(make: Callable[[ChannelConfig, int], object]) -> list[str]:
    """Try a channel model: what it gives, and whether that depends on what was asked before.

    Parameters
    ----------
    make
        The class, or what returns a model for a channel section and a seed, such as with options.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the model. Whether a radio is like it is not
        judged.
    """
    return first_findings(
        partial(part, make, config, seed)
        for config in _SETTINGS
        for seed in (0, 11)
        for part in (_links, _order, _draws)
    )


Make = Callable[[ChannelConfig, int], object]


def _made(make: Make, config: ChannelConfig, seed: int) -> ChannelModel:
    try:
        model = make(config, seed)
    except (Exception, SystemExit) as error:
        raise PluginFinding(f"it cannot be made ({described(error)}); expected a model") from error
    if not isinstance(model, ChannelModel):
        raise PluginFinding(f"{model!r:.80} is none; give a class that inherits from ChannelModel")
    return model


def _sample(model: ChannelModel, client: int, block: int) -> Link:
    where = f"client {client} in block {block}"
    try:
        link: object = model.sample(client, block)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"sample raised {described(error)} for {where}; expected a Link"
        ) from error
    if not isinstance(link, Link):
        raise PluginFinding(f"sample returned {link!r:.60} for {where}; expected a Link")
    return link


def _links(make: Make, config: ChannelConfig, seed: int) -> Iterator[str]:
    """Look at links as a run does: at their rates, in the bounds of a state."""
    model = _made(make, config, seed)
    for client, block in _ASKED:
        link, where = _sample(model, client, block), f"client {client} in block {block}"
        rates = link.up_rate_bps, link.down_rate_bps
        if (rates[0] is None) != (rates[1] is None):
            yield (
                f"sample gave a rate of one direction alone for {where}; expected both, or none "
                "and the SNRs of both"
            )
            continue
        try:
            channel = Channel(config, model, seed)
            channel.truth(client, 0)  # the SNR's rate is what the scenario's rule makes of it
            ChannelState(
                link.up_snr_db,
                link.down_snr_db,
                link.bandwidth_hz,
                1.0 if rates[0] is None else rates[0],
                1.0 if rates[1] is None else rates[1],
                derived=rates[0] is not None,
            )
        except FedloraError as error:
            reason = str(error).partition(";")[0]
            yield f"sample gave what no link has for {where} ({reason}); expected a link of a radio"


def _order(make: Make, config: ChannelConfig, seed: int) -> Iterator[str]:
    """Ask in two orders, and again: server, clients and a resumed run each ask in their own."""
    one, other = _made(make, config, seed), _made(make, config, seed)
    forward = {asked: _sample(one, *asked) for asked in _ASKED}
    backward = {asked: _sample(other, *asked) for asked in reversed(_ASKED)}
    if forward != {asked: _sample(one, *asked) for asked in _ASKED}:
        yield (
            "sample gave other links when asked again; expected the same, as draws of a run come "
            "from fedlora.channel.streams.stream(seed, purpose, client, block)"
        )
    elif forward != backward:
        yield (
            "sample gave other links when blocks were asked for in another order, or by another "
            "process; expected a function of seed, client and block alone"
        )


def _draws(make: Make, config: ChannelConfig, seed: int) -> Iterator[str]:
    """Look whether a model draws from, or sets, generators that belong to the whole process."""

    def ask() -> None:
        model = _made(make, config, seed)
        for asked in _ASKED:
            _sample(model, *asked)

    yield from (
        f"making or sampling has moved {name}'s global generator, from which the process "
        "draws other things; expected a generator of the model's own"
        for name in moved_generators(ask)
    )


def moved_generators(work: Callable[[], object]) -> list[str]:
    """Return which generators that belong to the whole process some work draws from, or sets.

    They are left as they were found.
    """
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Otherwise what sets a seed would find what it left there at an earlier call.
    random.random()
    np.random.random()
    torch.rand(1)
    before = _global_states()
    try:
        work()
        after = _global_states()
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
    return [name for name, state in before.items() if state != after[name]]


def _global_states() -> dict[str, object]:
    """Return the state of each generator that belongs to the whole process."""
    drawn = dict(np.random.get_state(legacy=False))
    place = dict(drawn.pop("state"))
    return {
        "random": random.getstate(),
        "numpy.random": (place.pop("key").tobytes(), place, drawn),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def check_predictor(make: Callable[[], object]) -> list[str]:
    """Try a predictor: what it answers, and whether that follows from what it is asked alone.

    Parameters
    ----------
    make
        The class, or what returns a predictor.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the predictor. How near it comes is not judged.
    """
    return first_findings(
        partial(part, make) for part in (_pace, _memory, _steady, _predictor_draws)
    )


def _histories() -> dict[str, np.ndarray]:
    """Return histories of shape (blocks, 2) in dB, by what is said of them."""
    at = np.arange(4096)[:, None]
    paths = np.arange(1, 9)
    fading = []
    for way in (0, 1):  # eight paths that turn at their own speeds, as in Jakes' model
        turns = 0.4 * np.cos(paths + way) * at + paths**2 * (1 + way)
        fading.append(10 * np.log10(np.abs(np.exp(1j * turns).sum(1)) ** 2))
    links = np.stack(fading, 1)
    blocks = (1, 2, 3, 17, 40, _BLOCKS, len(links))
    ends = np.where(at[:_BLOCKS] % 2, [[1e3, -1e3]], [[-1e3, 1e3]])
    return {
        **{f"{count} blocks of fading": links[:count] for count in blocks},
        "a link that never changes": np.tile(_STEADY_DB, (_BLOCKS, 1)),
        "SNRs at the ends of what a link may have": ends,
        "rates at the ends of what a link may have": np.where(ends < 0, -300.0, 150.0),
        "an SNR that falls": np.linspace((1e3, 30.0), (-1e3, 29.0), _BLOCKS),
    }


def _made_predictor(make: Callable[[], object]) -> ChannelPredictor:
    try:
        predictor = make()
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"it cannot be made ({described(error)}); expected a predictor"
        ) from error
    if not isinstance(predictor, ChannelPredictor):
        raise PluginFinding(
            f"{predictor!r:.80} is none; give a class that inherits from ChannelPredictor"
        )
    return predictor


def _predict(
    predictor: ChannelPredictor, title: str, history_db: np.ndarray, ahead: int
) -> tuple[float, float]:
    given, where = history_db.copy(), f"for {title}, {ahead} ahead"
    try:
        answer: object = predictor.predict(given, ahead)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"predict raised {described(error)} {where}; expected two numbers"
        ) from error
    found = two_finite(answer)
    if found is None:
        raise PluginFinding(f"predict gave {shown(answer)} {where}; expected two finite numbers")
    if not np.array_equal(given, history_db):
        raise PluginFinding(
            f"predict has changed its history {where}; expected that it copies what it changes"
        )
    return found


def _asked(
    predictor: ChannelPredictor, *, backward: bool = False
) -> Mapping[tuple[str, int], tuple[float, float]]:
    """Return what is predicted of every history, in one order or the other."""
    step = -1 if backward else 1
    return {
        (title, ahead): _predict(predictor, title, history_db, ahead)
        for title, history_db in list(_histories().items())[::step]
        for ahead in _AHEAD[::step]
    }


def _pace(make: Callable[[], object]) -> Iterator[str]:
    predictor, title = _made_predictor(make), f"{_BLOCKS} blocks of fading"
    history_db = _histories()[title]
    began = time.monotonic()
    _predict(predictor, title, history_db, 1)
    took_s = time.monotonic() - began
    if took_s > _SLOW_S * stretch():
        yield (
            f"predict takes {took_s:.1f} s for {title}; expected under {_SLOW_S:g} s, as each "
            "client's report waits for it"
        )


def _memory(make: Callable[[], object]) -> Iterator[str]:
    """Ask again, in another order, and another one: a resumed run begins with a new predictor."""
    one = _made_predictor(make)
    first = _asked(one)
    if first != _asked(one):
        yield (
            "predict gave other numbers for the same history when asked again; expected the same, "
            "without random draws and without what was asked before"
        )
    elif first != _asked(_made_predictor(make), backward=True):
        yield (
            "predict gave other numbers when a new predictor was asked in another order; expected "
            "a function of history and distance alone, as one predictor serves all clients"
        )


def _steady(make: Callable[[], object]) -> Iterator[str]:
    """Look at a link that never changes: numbers of another unit or direction are far from it."""
    for ahead in _AHEAD[:2]:
        history_db = np.tile(_STEADY_DB, (_BLOCKS, 1))
        found = _predict(_made_predictor(make), "a link that never changes", history_db, ahead)
        if not np.allclose(found, _STEADY_DB, rtol=0, atol=_NEAR_DB):
            (up_db, down_db), (up, down) = _STEADY_DB, found
            yield (
                f"predict gave {up:g} up and {down:g} down for a link that stood at {up_db:g} dB "
                f"up and {down_db:g} dB down in all of {_BLOCKS} blocks; expected about these, "
                "uplink first, in the unit of the history"
            )


def _predictor_draws(make: Callable[[], object]) -> Iterator[str]:
    yield from (
        f"making or predicting has moved {name}'s global generator, from which the process draws "
        "other things; expected no random draws"
        for name in moved_generators(lambda: _asked(_made_predictor(make)))
    )
