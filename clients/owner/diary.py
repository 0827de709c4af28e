"""What one invitation came to, in the owner's words: lines of the log and of the audit file.

The log has whole sentences, which may quote records. The audit file has kinds and figures alone;
see ``fedlora.site.audit`` for its events. What leaves is counted before it leaves, so that a kill
can only make it count what never left, as with the ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from clients.owner.door import Door
from clients.owner.table import counted_as
from clients.owner.wishes import wishes
from clients.owner.words import log_whole
from fedlora.checks import finite
from fedlora.config import ClientLimit, scenario_from_toml
from fedlora.errors import FedloraError, printable
from fedlora.link import REASON, Frame, closed_words, messages as m
from fedlora.privacy.accounting import epsilon_of
from fedlora.site import audit
from fedlora.site.tally import Tally, settle
from fedlora.site.words import FINISHED, budget_text, left_text, rows_text, wants_text

log = logging.getLogger("fedlora.edge")

Handler = Callable[[Frame], Frame]
_MOST_CHARACTERS = 100


class Diary:
    """Writes down what a session asks, gets and costs, on the owner's disk.

    Parameters
    ----------
    folder
        The owner's ``state`` folder.
    invitation
        The session message, unchecked.
    """

    def __init__(self, folder: Path, invitation: Mapping[str, Any]) -> None:
        self._folder, self._invitation = folder, invitation
        self._path = folder / audit.NAME
        # Not drawn: what is random on a device is noise and secrets alone.
        self._about = {
            "session": f"{time.time_ns():x}-{os.getpid():x}",
            "client": printable(invitation.get("client", ""), 20),
            "run": printable(invitation.get("run", ""), 40),
        }
        self._tally: Tally | None = None
        self._left: Counter[str] = Counter()
        self._round, self._samples, self._baseline = 0, 0, False
        self._began = self._round_began = time.monotonic()
        self._door: Door | None = None

    @property
    def _who(self) -> str:
        return f"run {self._about['run']}"

    def asked(self) -> None:
        """Write down who asks for what, and how sessions ended whose process was killed.

        Raises
        ------
        FedloraError
            When the audit file cannot be written: then the device takes part in nothing.
        """
        for session, record in settle(self._folder):
            audit.append(
                self._path,
                {"event": audit.INTERRUPTED, "time": audit.now(), **record, "session": session},
            )
        text = self._invitation.get("scenario")
        text = text if isinstance(text, str) else ""
        try:
            scenario = scenario_from_toml(text)
            name, wanted = printable(scenario.name, _MOST_CHARACTERS), wishes(scenario)
        except Exception:  # of anything at all; it is refused with its sentence later
            name, wanted = "", {}
        digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
        server = printable(self._invitation.get("address", ""), _MOST_CHARACTERS)
        self._write(audit.ASKED, name=name, scenario=digest, server=server, wants=wanted)
        log.info(
            "%s, called %r, of the server at %s asks client %s to take part; scenario %s; it wants "
            "%s",
            self._who,
            name,
            server,
            self._about["client"],
            digest,
            wants_text(wanted),
        )

    def accepted(
        self, door: Door, data: str, rows: Mapping[str, int], limit: ClientLimit | None
    ) -> None:
        """Write down that the device takes part, with which records and under which limit.

        Parameters
        ----------
        door
            Its ledger is the one that the run is charged in.
        data
            Where the records are.
        rows
            How many records ``train``, are ``held_out`` and ``left_out``.
        limit
            The owner's.

        Raises
        ------
        FedloraError
            When it cannot be written.
        """
        self._tally = Tally(self._folder, self._about["session"])
        self._door = door
        own = None
        if limit is not None:
            own = {"epsilon": limit.epsilon, "delta": limit.delta, "tight": limit.tight}
        ledger = self._ledger()
        self._write(audit.ACCEPTED, data=data, rows=rows, limit=own, ledger=ledger)
        self._count({})
        log.info("%s: accepted: %s; %s", self._who, rows_text(rows), budget_text(ledger, own))

    def watched(self, handler: Handler) -> Handler:
        """Return a handler whose replies are counted before they leave."""

        def handle(request: Frame) -> Frame:
            reply = handler(request)
            self.leaves(reply, request)
            return reply

        return handle

    def leaves(self, reply: Frame, request: Frame | None = None) -> None:
        """Count a message that is about to leave, and take note of what it says of the round."""
        if request is not None and request.kind == m.PHASE:
            self._baseline = request.fields.get("name") == "baseline"
        if request is not None and request.kind == m.ROUND:
            self._round, self._round_began = request.fields["round"], time.monotonic()
        samples = reply.fields.get("samples")
        self._samples = samples if isinstance(samples, int) else self._samples
        self._count(sizes(reply.fields, reply.tensors))
        if request is not None and request.kind == m.ROUND_END and reply.kind == m.ROUND_REPORT:
            self._round_over()

    def told(self, error: BaseException) -> Mapping[str, Any]:
        """Return what the server is told of a failure, counted."""
        assert self._door is not None
        words = self._door.told(error)
        with contextlib.suppress(FedloraError):  # last words are told, counted or not
            self._count(sizes(words))
        return words

    def ended(self) -> None:
        """Write down that the server has ended the session well."""
        self._over(FINISHED, {})
        log.info(
            "%s: finished after round %d and %.0f s: %d samples; bytes that left: %s; %s",
            self._who,
            self._round,
            time.monotonic() - self._began,
            self._samples,
            left_text(self._left),
            self._budget(),
        )

    def failed(self, error: BaseException) -> None:
        """Write down why the device refuses, or leaves, with the whole sentence in the log."""
        words = dict(closed_words(error))
        kind = words.pop(REASON)
        if self._door is None:
            log_whole(f"{self._who}: refused, this device does not take part", error)
        else:
            when = f"leaves in round {self._round}" if self._round else "does not take part"
            log_whole(f"{self._who}: this device {when}", error)
            log.info(
                "%s: bytes that left: %s; %s", self._who, left_text(self._left), self._budget()
            )
        try:
            if self._door is None:
                self._write(audit.REFUSED, kind=kind, **words)
            else:
                self._over(kind, words)
        except FedloraError as unwritten:
            log.error("the audit file lacks how this ended: %s", unwritten)

    def _round_over(self) -> None:
        seconds = time.monotonic() - self._round_began
        try:
            which = {"baseline": True} if self._baseline else {}
            self._write(audit.ROUND, seconds=round(seconds, 3), **which, **self._state())
        except FedloraError as error:  # the totals are in the next line that can be written
            log.error("the audit file lacks round %d: %s", self._round, error)
        log.info(
            "%s: %s %d is over after %.1f s: %d samples so far; bytes that left: %s; %s",
            self._who,
            "baseline round" if self._baseline else "round",
            self._round,
            seconds,
            self._samples,
            left_text(self._left),
            self._budget(),
        )

    def _over(self, how: str, numbers: Mapping[str, Any]) -> None:
        seconds = round(time.monotonic() - self._began, 3)
        self._write(audit.ENDED, how=how, seconds=seconds, **self._state(), **numbers)
        if self._tally is not None:
            self._tally.close()
            self._tally = None

    def _state(self) -> dict[str, Any]:
        ledger = self._ledger()
        return {
            "round": self._round,
            "samples": self._samples,
            "left": dict(self._left),
            "ledger": ledger,
        }

    def _count(self, parts: Mapping[str, int]) -> None:
        """Add to what has left, on disk first."""
        self._left.update(parts)
        if self._tally is not None:
            counted = {"round": self._round, "samples": self._samples, "left": dict(self._left)}
            self._tally.write({**self._about, **counted})

    def _write(self, event: str, **more: Any) -> None:
        audit.append(self._path, {"event": event, "time": audit.now(), **self._about, **more})

    def _ledger(self) -> Mapping[str, Any] | None:
        """Return what the ledger has booked over all runs; None where there is none."""
        if self._door is None or self._door.ledger is None:
            return None
        ledger = self._door.ledger
        limit = self._door.terms.limit or ClientLimit(epsilon=1.0)
        epsilon = epsilon_of(ledger.rho, limit.delta, tight=limit.tight) + ledger.label_epsilon
        return {
            "path": str(ledger.path.absolute()),
            "key": ledger.key,
            "charges": ledger.seq,
            "rho": ledger.rho,
            "label_epsilon": ledger.label_epsilon,
            "epsilon": finite(epsilon),
        }

    def _budget(self) -> str:
        limit = None if self._door is None else self._door.terms.limit
        own = None if limit is None else {"epsilon": limit.epsilon}
        return budget_text(self._ledger(), own)


def sizes(
    fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> Counter[str]:
    """Return the bytes of a message's parts, by the kinds of ``clients.owner.table``.

    Tensors count as they travel, fields as JSON; frames and TLS add their own.
    """
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        found[counted_as(name)] += tensor.nbytes
    for name, value in fields.items():
        if value is not None:
            found[counted_as(name)] += len(json.dumps(value, separators=(",", ":")))
    return found
