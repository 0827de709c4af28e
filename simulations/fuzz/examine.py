"""One scenario through all oracles."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.check import check_scenario
from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from simulations.fuzz.oracles.again import repeat, resume, unrelated, without_rank
from simulations.fuzz.oracles.air import bits
from simulations.fuzz.oracles.exports import exports, inferred, told
from simulations.fuzz.oracles.privacy import accounting, ledgers, limits, target
from simulations.fuzz.oracles.refusal import refusal
from simulations.fuzz.oracles.sound import finite, moved, undisturbed, written
from simulations.fuzz.oracles.start import start
from simulations.fuzz.oracles.unsplit import unsplit
from simulations.fuzz.trial import Trial

Oracle = Callable[[Trial], str | None]

ORACLES: tuple[Oracle, ...] = (
    *(written, finite, undisturbed, moved, start, unsplit, bits, target, accounting, ledgers),
    *(limits, repeat, resume, unrelated, without_rank, exports, told, inferred),
)
HANG_S = 30.0
"""Processor time that check and training of a scenario may take; tiny ones take a second."""

_WAIT = 30  # times as long by the clock, as a machine may be busy
_TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, _WAIT))

_DIVERGED = "training has diverged"  # which nothing but the run can find out


@dataclass
class Outcome:
    """What became of a scenario.

    Attributes
    ----------
    stage
        How far it came: ``load``, ``check``, ``build``, ``train`` or ``judge``.
    kind
        ``ran``, ``refused`` before anything was built, or what is a fault in itself: ``late
        refusal``, ``crash`` or ``hang``.
    message
        What was said, where it did not run.
    verdicts
        By oracle what is wrong, an empty text where nothing is; those that did not apply are
        missing.
    seconds
        Of all of it.
    """

    stage: str = "load"
    kind: str = "ran"
    message: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each, with the oracle before it."""
        own = [] if self.kind in ("ran", "refused") else [f"{self.kind}: {self.message}"]
        return own + [f"{name}: {text}" for name, text in self.verdicts.items() if text]

    @property
    def signature(self) -> tuple[str, ...]:
        """What two outcomes of one fault have in common."""
        own = () if self.kind in ("ran", "refused") else (self.kind, self.stage)
        return (*own, *sorted(name for name, text in self.verdicts.items() if text))


class _Hang(BaseException):
    """It takes too long."""


def examine(path: Path, place: Path, only: Collection[str] | None = None) -> Outcome:
    """Check a scenario, run it, and hold it to all oracles.

    Parameters
    ----------
    path
        Its file.
    place
        An empty folder to work in.
    only
        Names of the oracles that are asked; None for all.
    """
    found, began = Outcome(), time.perf_counter()
    try:
        with _within(HANG_S):
            trial = _train(path, place, found)
        found.stage = "judge"
        with _within(10 * HANG_S):
            for oracle in ORACLES:
                if only is None or oracle.__name__ in only:
                    verdict = oracle(trial)
                    if verdict is not None:
                        found.verdicts[oracle.__name__] = verdict
    except FedloraError as error:
        found.message = str(error)
        early = found.stage in ("load", "check") or _DIVERGED in found.message
        found.kind = "refused" if early else "late refusal"
        found.verdicts["refusal"] = refusal(found.message)
    except _Hang:
        found.kind = "hang"
        found.message = f"{found.stage} takes more than {HANG_S:g} s of a processor"
    except Exception as error:  # the finding itself
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:200]
        found.kind = "crash"
        found.message = f"{type(error).__name__} at {frame.filename}:{frame.lineno} ({text})"
    found.seconds = time.perf_counter() - began
    return found


def _train(path: Path, place: Path, found: Outcome) -> Trial:
    scenario = load_scenario(path)
    found.stage = "check"
    check_scenario(scenario)
    found.stage = "build"
    trial = Trial.of(scenario, place)
    found.stage = "train"
    trial.run.train()
    return trial


@contextlib.contextmanager
def _within(limit_s: float) -> Iterator[None]:
    """Raise ``_Hang`` when the block takes more processor time, or waits for very long."""

    def ring(number: int, frame: object) -> None:
        del number, frame
        raise _Hang

    before = {number: signal.signal(number, ring) for number, _, _ in _TIMERS}
    left = {timer: signal.setitimer(timer, times * limit_s) for _, timer, times in _TIMERS}
    try:
        yield
    finally:
        for number, timer, _ in _TIMERS:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
            signal.setitimer(timer, *left[timer])  # a test's own limit goes on


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep warnings, which random scenarios bring about by the hundred, off the screen."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
