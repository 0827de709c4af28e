"""The folder of one run: what is written while it goes on, and how it is read back.

Every file is either appended line by line (``metrics.jsonl``, ``events.jsonl``, ``log.txt``) or
replaced as a whole (``summary.json``), so that a run that dies at any moment leaves valid results.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from fedlora.checks import finite
from fedlora.errors import FedloraError
from fedlora.log_line import LineFormatter
from fedlora.report.records import RoundRecord
from fedlora.report.summary import Summary
from fedlora.storage import (
    FolderKind,
    append_line,
    explained,
    is_locked,
    json_line,
    lock_file,
    read_lines,
    read_object,
    replace_file,
)

RUN = FolderKind(
    "run",
    ("events.jsonl",),
    (
        *("scenario.toml", "metrics.jsonl", "summary.json", "adapter", "head.safetensors"),
        "front.safetensors",
        *("checkpoint", "plots", "audit.json", "report.html", "log.txt", "log.jsonl"),
        *("flower.txt", "status.json", "serving-*.json", "tensorboard", "evaluation.json"),
        *("result.md", "result.tex", "mlflow", "wandb", "rehearsal"),
    ),
)


class RunFolder:
    """Paths of a run's files, and the only code that writes and reads its records.

    Making the object touches nothing on disk, so that several processes can hold one: the process
    that starts the run calls ``create``; the engine appends; the command line reads.

    Parameters
    ----------
    path
        The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: BinaryIO | None = None

    @property
    def scenario(self) -> Path:
        """The scenario as it was resolved."""
        return self.path / "scenario.toml"

    @property
    def metrics(self) -> Path:
        """One ``RoundRecord`` a line."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Progress, one event a line; its presence marks a run folder."""
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        """The final figures."""
        return self.path / "summary.json"

    @property
    def adapter(self) -> Path:
        """The adapter in the layout of PEFT."""
        return self.path / "adapter"

    @property
    def head(self) -> Path:
        """The head that all clients share; personal ones stay with the clients."""
        return self.path / "head.safetensors"

    @property
    def front(self) -> Path:
        """The token embedding, or front of a task, that the clients trained and share."""
        return self.path / "front.safetensors"

    @property
    def checkpoint(self) -> Path:
        """What a resume needs."""
        return self.path / "checkpoint"

    @property
    def writer_lock(self) -> Path:
        """What the process that trains holds while it lives; see ``Checkpoints.hold``."""
        return self.checkpoint / "lock"

    @property
    def plots(self) -> Path:
        """The plots as PNG files."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def audit(self) -> Path:
        """The figures of ``fedlora audit``, where the run was audited."""
        return self.path / "audit.json"

    @property
    def evaluation(self) -> Path:
        """The last evaluation in full: every metric and the confusion matrix, by client too."""
        return self.path / "evaluation.json"

    @property
    def log(self) -> Path:
        """The log in plain text."""
        return self.path / "log.txt"

    @property
    def status(self) -> Path:
        """What the server knew of each client at the last look."""
        return self.path / "status.json"

    def serving(self, port: int | str) -> Path:
        """Return where it is told how ``fedlora serve`` goes on a port, or went."""
        return self.path / f"serving-{port}.json"

    @classmethod
    def create(
        cls, path: Path | str, *, overwrite: bool = False, kind: FolderKind = RUN
    ) -> RunFolder:
        """Make a folder ready for a new run and hold it as long as the object lives.

        Parameters
        ----------
        path
            The folder, which is made if need be.
        overwrite
            Whether the results of an earlier run in it are to be replaced; files that fedlora does
            not write are left alone.
        kind
            Says by its ``overwrite`` how the user asks for that.

        Raises
        ------
        FedloraError
            When the folder holds an earlier run or something else, belongs to a run that is still
            going on or that a process is left of, or cannot be written.
        """
        folder = cls(path)
        with explained(folder.path):
            if folder.events.is_file():
                folder._hold()  # a run that goes on is no earlier one
            resume = f"go on with it by fedlora resume {folder.path} if it has not ended, "
            kind.check_free(folder.path, overwrite=overwrite, instead=resume)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._hold()
            folder.events.write_bytes(b"")
            kind.clear(folder.path)
        return folder

    @classmethod
    def reopen(cls, path: Path | str) -> RunFolder:
        """Hold the folder of a run that is to go on; what it has written stays.

        Raises
        ------
        FedloraError
            When the run is still going on, a process is left of it, or the folder cannot be
            written.
        """
        folder = cls(path)
        with explained(folder.path):
            folder._hold()
            folder._forget_end()
        return folder

    def write_scenario(self, toml_text: str) -> None:
        """Write the resolved scenario."""
        replace_file(self.scenario, toml_text.encode())

    def append_round(self, record: RoundRecord) -> None:
        """Append one round to ``metrics.jsonl`` and sync it to disk.

        Raises
        ------
        FedloraError
            When the disk is full or the file cannot be written; earlier rounds stay.
        """
        append_line(self.metrics, record, sync=True)

    def forget_rounds_after(self, round_: int) -> None:
        """Remove the records of rounds that are about to be repeated from ``metrics.jsonl``.

        Raises
        ------
        FedloraError
            When the file cannot be written; it stays as it was.
        """
        records = self.read_metrics()
        kept = [record for record in records if (finite(record.get("round")) or 0) <= round_]
        if len(kept) < len(records):
            replace_file(self.metrics, b"".join(map(json_line, kept)))

    def append_event(self, event: str, /, **fields: object) -> None:
        """Append one progress event, stamped with the time; see ``fedlora.report.progress``."""
        append_line(self.events, {"event": event, "time": time.time(), **fields}, sync=False)

    def write_summary(self, summary: Summary) -> None:
        """Replace ``summary.json``: at any moment it is the old or the new one, whole."""
        replace_file(self.summary, json_line(summary.to_dict(), indent=2))

    def write_evaluation(self, evaluation: Mapping[str, object]) -> None:
        """Replace ``evaluation.json``."""
        replace_file(self.evaluation, json_line(evaluation))

    def write_status(self, status: Mapping[str, object]) -> None:
        """Replace ``status.json``; it is of the moment, so it is not synced to disk."""
        replace_file(self.status, json_line(status), sync=False)

    def read_status(self) -> dict[str, Any]:
        """Return what ``write_status`` wrote last; empty when there is none that can be read."""
        return read_object(self.status) or {}

    def read_metrics(self) -> list[RoundRecord]:
        """Return the rounds in order.

        A line that is torn or no round is left out, and of a round that was repeated after a resume
        the last record counts.
        """
        lines, _ = read_lines(self.metrics, 0)
        rounds: dict[float, RoundRecord] = {}
        for index, record in enumerate(filter(_is_round, lines), start=1):
            rounds[finite(record.get("round")) or index] = cast(RoundRecord, record)
        return [rounds[key] for key in sorted(rounds)]

    def read_events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the events from a byte offset on, and the offset to go on from.

        A line that is still being written is left for the next call.
        """
        return read_lines(self.events, offset)

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None when there is none that can be read."""
        return read_object(self.summary)

    def read_audit(self) -> dict[str, Any] | None:
        """Return what an audit found, or None when there is none that can be read."""
        return read_object(self.audit)

    def log_handler(
        self, level: int = logging.INFO, *, formatter: logging.Formatter | None = None
    ) -> logging.Handler:
        """Return a handler that appends to ``log.txt``, or with its own format to ``log.jsonl``."""
        path = self.log if formatter is None else self.path / "log.jsonl"
        with explained(path):
            handler = _LogHandler(path, encoding="utf-8")
        handler.setLevel(level)
        handler.setFormatter(
            formatter or LineFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        )
        return handler

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_held(self) -> bool:
        """Tell whether a process works on the run: who started it, or the one that trains."""
        return is_locked(self.events) or is_locked(self.writer_lock)

    def _hold(self) -> None:
        """Keep others out: who starts a run holds its events, the process that trains its lock.

        The one may have been killed while the other lives on.
        """
        if self._lock is not None:
            return
        lock = lock_file(self.events)
        if lock is None:
            raise FedloraError(
                f"a run is still going on in {self.path}; wait for it or choose another folder"
            )
        if self.writer_lock.exists():
            writer = lock_file(self.writer_lock)
            if writer is None:
                lock.close()
                raise FedloraError(
                    f"a process of an earlier run still writes to {self.path}; end it first, or "
                    "choose another folder"
                )
            writer.close()
        self._lock = lock

    def _forget_end(self) -> None:
        """Blank out how the run ended, which whoever follows its events must not see.

        In place, as the lock is on this file; a process that is killed here loses no event.
        """
        place = 0
        with self.events.open("r+b") as file:
            for line in file.read().split(b"\n"):
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and event.get("event") == "done":
                        file.seek(place)
                        file.write(b" " * len(line))
                place += len(line) + 1


class _LogHandler(logging.FileHandler):
    """A file handler that drops a line it cannot write: the next round's record reports why."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # name of the base class
        del record


def _is_round(record: Mapping[str, Any]) -> bool:
    """Tell whether a line is a round's, as far as readers rely on it."""
    clients = record.get("clients")
    return clients is None or (
        isinstance(clients, dict) and all(isinstance(own, dict) for own in clients.values())
    )
