"""Try a scheduler on rounds as a run may bring them, and say what is wrong."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fedlora.channel.check import moved_generators
from fedlora.channel.schedule.base import ClientLoad, Scheduler, checked_division, foreseen
from fedlora.channel.state import ChannelState
from fedlora.errors import FedloraError, described, shown
from fedlora.machine import stretch
from fedlora.plugin_finding import PluginFinding, first_findings
from fedlora.storage.tree import State, pack_state, unpack_state

_SETTINGS = ((0, 0.0), (11, 2e6))  # seed, and total bandwidth in Hz; 0 where none is set
_MANY, _SLOW_S = 100, 2.0
_WHAT = "the scheduler"

Make = Callable[..., object]
Choices = list[dict[int, float]]


def check_scheduler(make: Callable[..., object]) -> list[str]:
    """Try a scheduler: whom it chooses, how it divides, and whether a resumed run goes on alike.

    Parameters
    ----------
    make
        The class, or what returns a scheduler for ``rounds``, ``seed`` and ``total_bandwidth_hz``,
        which are given by name, such as with options.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the scheduler. How good its choice is, is not
        judged.
    """
    parts = (_pace, _answers, _foresight, _order, _resumed, _draws)
    return first_findings(partial(part, make, *setting) for setting in _SETTINGS for part in parts)


@dataclass(frozen=True)
class _Round:
    title: str
    reports: Mapping[int, ChannelState]
    loads: Mapping[int, ClientLoad]
    delay_s: float


def _rounds() -> list[_Round]:
    """Return rounds that begin as a run does, and then bring what may come."""
    some, unloaded = _reports(8), ClientLoad(1e6, 1e6)
    rates = {c: replace(s, up_snr_db=None, down_snr_db=None) for c, s in some.items()}
    ends = {
        0: ChannelState(-1e3, -1e3, 1.0, 1e-30, 1e-30),
        1: ChannelState(1e3, 1e3, 1e13, 1e15, 1e15),
        2: ChannelState(1e6, -1e6, 1e6, 1e15, 1e-30, age_s=1e6, derived=True),
        3: some[3],
    }
    deep = {c: ChannelState(-60.0, -60.0, 1e6, 1.44, 1.44) for c in some}
    idle = {c: replace(load, up_bits=0.0, compute_s=1.5) for c, load in _loads(some).items()}
    return [
        _Round("8 clients of which nothing is known", some, dict.fromkeys(some, unloaded), 1.0),
        _Round("8 clients", some, _loads(some), 30.0),
        _Round("8 clients in other fades", _reports(8, 5), _loads(some), 0.01),
        _Round("one client", {2: some[2]}, {2: unloaded}, 0.5),
        _Round("no client that could be reached", {}, {}, 0.0),
        _Round("links of which the rates alone are known", rates, _loads(rates), 1e4),
        _Round("links at the ends of what they may be", ends, _loads(ends), 1e30),
        _Round("8 clients in deep fades", deep, _loads(deep), 1e7),
        _Round("clients that send nothing", some, idle, 2.0),
        _Round("new clients", (new := _reports(3, 1, first=40)), _loads(new), 2.0),
        _Round("30 clients", (many := _reports(30)), _loads(many), 2.0),
        _Round("8 clients that came back", some, _loads(some), 2.0),
    ]


def _reports(count: int, fade: int = 0, first: int = 0) -> dict[int, ChannelState]:
    """Return links of 1 MHz with SNRs from -10 to 20 dB."""
    reports = {}
    for client in range(first, first + count):
        down_db = -10.0 + 30 * ((client * 0.37 + fade * 0.29) % 1)
        up_db = down_db - 3
        up_bps, down_bps = (1e6 * math.log2(1 + 10 ** (db / 10)) for db in (up_db, down_db))
        reports[client] = ChannelState(up_db, down_db, 1e6, up_bps, down_bps, age_s=0.1)
    return reports


def _loads(reports: Mapping[int, ChannelState]) -> dict[int, ClientLoad]:
    return {client: ClientLoad(3e5 * (1 + client % 4), 2e6) for client in reports}


def _made(make: Make, seed: int, total_hz: float) -> Scheduler:
    try:
        scheduler = make(rounds=len(_rounds()), seed=seed, total_bandwidth_hz=total_hz)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"it cannot be made ({described(error)}); expected a scheduler"
        ) from error
    if not isinstance(scheduler, Scheduler):
        raise PluginFinding(f"{scheduler!r:.80} is none; give a class that inherits from Scheduler")
    return scheduler


def _select(scheduler: Scheduler, number: int, item: _Round, total_hz: float) -> dict[int, float]:
    """Return whom it chooses; it must be as a run takes it, and of those that report alone."""
    reports, loads, where = dict(item.reports), dict(item.loads), f"with {item.title}, "
    try:
        division: object = scheduler.select(number, reports, loads)
    except (Exception, SystemExit) as error:
        said = f"{where}select raised {described(error)}"
        raise PluginFinding(f"{said}; expected a dict of Hz by client") from error
    if (reports, loads) != (item.reports, item.loads):
        raise PluginFinding(
            f"{where}select changed reports or loads; expected it to leave its arguments alone"
        )
    try:
        given = checked_division(division, number, item.reports, total_hz, _WHAT)
    except FedloraError as error:
        raise PluginFinding(f"{where}{error}") from error
    strangers = [client for client in dict(division) if client not in item.reports]  # type: ignore[call-overload]
    if strangers:
        raise PluginFinding(
            f"{where}select chose {shown(strangers[0])}, who reports nothing; expected some of the "
            "clients that it is given"
        )
    pool_hz = sum(state.bandwidth_hz for state in item.reports.values())
    if not total_hz and sum(given.values()) > pool_hz * (1 + 1e-6):
        raise PluginFinding(
            f"{where}select divides {sum(given.values()):g} Hz where no total is set; expected "
            f"{pool_hz:g} Hz, which all clients have together, or less"
        )
    return given


def _play(
    scheduler: Scheduler, total_hz: float, start: int = 0, *, stop: int = 99, turned: bool = False
) -> Choices:
    """Return whom it chooses in the rounds from one to another, and tell it how they went."""
    chosen: Choices = []
    for number, item in list(enumerate(_rounds()))[start:stop]:
        if turned:
            order = sorted(item.reports, reverse=True)
            item = replace(  # noqa: PLW2901
                item,
                reports={client: item.reports[client] for client in order},
                loads={client: item.loads[client] for client in order},
            )
        if item.reports:
            chosen.append(_select(scheduler, number, item, total_hz))
        try:
            scheduler.observe(number, item.delay_s)
        except (Exception, SystemExit) as error:
            said = f"observe raised {described(error)} for a round of {item.delay_s:g} s"
            raise PluginFinding(f"{said}; expected that it takes any length") from error
    return chosen


def _pace(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    """Time one round of many clients."""
    reports = _reports(_MANY)
    item = _Round(f"{_MANY} clients", reports, _loads(reports), 1.0)
    scheduler = _made(make, seed, total_hz)
    began = time.monotonic()
    _select(scheduler, 0, item, total_hz)
    took_s = time.monotonic() - began
    if took_s > _SLOW_S * stretch():
        yield (
            f"select takes {took_s:.1f} s for {_MANY} clients; expected under {_SLOW_S:g} s, as "
            "all of them wait for it in each round"
        )


def _answers(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    """Play a run twice: the same seed, the same choices."""
    one, other = (_play(_made(make, seed, total_hz), total_hz) for _ in range(2))
    if one != other:
        yield (
            "select chose or divided otherwise in a second run with the same seed; expected the "
            "same, as draws come from fedlora.channel.streams.stream(seed, Stream.SCHEDULE, round)"
        )


def _foresight(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    """Compare whom it foresees before a run with whom it chooses in one."""
    before, played = _made(make, seed, total_hz), _made(make, seed, total_hz)
    for number, item in enumerate(_rounds()):
        if not item.reports:
            continue
        try:
            found = foreseen(before, number, sorted(item.reports), _WHAT)
        except (Exception, SystemExit) as error:
            said = str(error) if isinstance(error, FedloraError) else described(error)
            raise PluginFinding(
                f"with {item.title}, {said} (in foresee; expected a list or None)"
            ) from error
        chosen = sorted(_select(played, number, item, total_hz))
        if found is not None and sorted(found) != chosen:
            yield (
                f"with {item.title}, foresee names {shown(found)}, and select chose "
                f"{shown(chosen)}; expected the same whatever clients report, each once, or None "
                "where that decides"
            )
            return
        played.observe(number, item.delay_s)


def _order(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    """List the same clients the other way round."""
    one = _play(_made(make, seed, total_hz), total_hz)
    if one != _play(_made(make, seed, total_hz), total_hz, turned=True):
        yield (
            "select chose or divided otherwise when the same clients were listed in another order; "
            "expected the same, as that order says nothing, so go through sorted(reports)"
        )


def _resumed(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    """Go on from what a checkpoint keeps, with a new scheduler."""
    whole = _play(_made(make, seed, total_hz), total_hz)
    middle, before = len(_rounds()) // 2, _made(make, seed, total_hz)
    begun = _play(before, total_hz, stop=middle)
    state, again = _stored(before), _made(make, seed, total_hz)
    try:
        again.load_state_dict(state)
    except (Exception, SystemExit) as error:
        said = f"load_state_dict raised {described(error)}"
        raise PluginFinding(f"{said}; expected that it takes what state_dict gave") from error
    if begun + _play(again, total_hz, middle) != whole:
        yield (
            "a new scheduler that was given the state chose or divided otherwise than one that "
            "went on; expected the same, so put all that select and observe learn into state_dict"
        )


def _stored(scheduler: Scheduler) -> State:
    """Return the state as a checkpoint would give it back."""
    try:
        tree, tensors = pack_state(scheduler.state_dict())
    except (Exception, SystemExit) as error:
        told = str(error) if isinstance(error, FedloraError) else described(error)
        raise PluginFinding(
            f"state_dict gives what no checkpoint holds ({told}); expected a table of numbers, "
            "texts, lists and tables"
        ) from error
    return unpack_state(json.loads(json.dumps(tree)), tensors)


def _draws(make: Make, seed: int, total_hz: float) -> Iterator[str]:
    yield from (
        f"making or choosing has moved {name}'s global generator, from which the process draws "
        "other things; expected draws from fedlora.channel.streams.stream"
        for name in moved_generators(lambda: _play(_made(make, seed, total_hz), total_hz))
    )
