"""Try a channel model on clients and times in any order, and say what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fedlora.channel.channel import Channel
from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.state import ChannelState
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError, described

_ASKED = [(client, block) for client in (0, 1, 7) for block in (0, 1, 2, 40, 3, 5_000, 1)]
_SETTINGS = (
    ChannelConfig(model="checked"),
    ChannelConfig(model="checked", round_s=2.0, coherence_s=0.25, snr_db=(-3.0, 12.0)),
)


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
    for config in _SETTINGS:
        for seed in (0, 11):
            for part in (_links, _order, _draws):
                try:
                    findings = list(dict.fromkeys(part(make, config, seed)))
                except _Finding as finding:
                    findings = [str(finding)]
                if findings:  # what comes later often follows from it
                    return findings
    return []


class _Finding(Exception):
    """What ends a part of the check."""


Make = Callable[[ChannelConfig, int], object]


def _made(make: Make, config: ChannelConfig, seed: int) -> ChannelModel:
    try:
        model = make(config, seed)
    except Exception as error:
        raise _Finding(f"it cannot be made ({described(error)}); expected a model") from error
    if not isinstance(model, ChannelModel):
        raise _Finding(f"{model!r:.80} is none; give a class that inherits from ChannelModel")
    return model


def _sample(model: ChannelModel, client: int, block: int) -> Link:
    where = f"client {client} in block {block}"
    try:
        link: object = model.sample(client, block)
    except Exception as error:
        raise _Finding(f"sample raised {described(error)} for {where}; expected a Link") from error
    if not isinstance(link, Link):
        raise _Finding(f"sample returned {link!r:.60} for {where}; expected a Link")
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
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Otherwise a model that sets a seed would find what it left there at an earlier call.
    random.random()
    np.random.random()
    torch.rand(1)
    before = _global_states()
    model = _made(make, config, seed)
    for asked in _ASKED:
        _sample(model, *asked)
    after = _global_states()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    for name, state in before.items():
        if state != after[name]:
            yield (
                f"making or sampling has moved {name}'s global generator, from which the process "
                "draws other things; expected a generator of the model's own"
            )


def _global_states() -> dict[str, object]:
    """Return the state of each generator that belongs to the whole process."""
    drawn = dict(np.random.get_state(legacy=False))
    place = dict(drawn.pop("state"))
    return {
        "random": random.getstate(),
        "numpy.random": (place.pop("key").tobytes(), place, drawn),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
