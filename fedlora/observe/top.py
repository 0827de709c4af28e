"""The view of a run that ``fedlora top`` shows."""

from __future__ import annotations

from collections import Counter
from typing import cast

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedlora.checks import finite
from fedlora.observe.observer import ClientStatus, RunState
from fedlora.observe.serving import serving_lines
from fedlora.report import (
    ABSENT,
    MetricText,
    RunFolder,
    bits_text,
    count_text,
    number_text,
    seconds_text,
)

_HEADER_LINES = 8
_WHERE_TOLD = ("epsilon", "misses")  # columns that are left out where they are empty
_GOING_ON = "going on"
_HERE = ("connected", "awaited", "late")
_STYLES = {"connected": "green", "awaited": "yellow", "late": "yellow", "lost": "red"}
_QUIET_S = 10.0
"""After so long without an event it is looked whether a process still works on the run."""


class RunView:
    """Follows a run folder and draws what is in it.

    Parameters
    ----------
    folder
        The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        """Know nothing of the run yet."""
        self.state = RunState()
        self.outcome = ""
        self._offset = 0

    @property
    def done(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return bool(self.outcome)

    @property
    def served(self) -> bool:
        """Whether a server lives that generates with the run."""
        return bool(serving_lines(self.folder))

    def poll(self) -> None:
        """Read what is new."""
        if self.folder.events.is_file() and self.folder.events.stat().st_size < self._offset:
            self._forget()  # another run was begun in the folder
        events, self._offset = self.folder.read_events(self._offset)
        for event in events:
            self.state.apply(event)
            if event.get("event") == "done":
                self.outcome = " ".join(
                    str(event.get(key) or "") for key in ("status", "text")
                ).strip()
        for record in self.folder.read_metrics():
            self.state.note_round(record)
        clients = self.folder.read_status().get("clients")
        if isinstance(clients, dict):
            found = {c: own for c, own in clients.items() if isinstance(own, dict)}
            self.state.clients = cast(dict[str, ClientStatus], found)

    def render(self, now: float, height: int | None = None) -> Group:
        """Draw the run.

        Parameters
        ----------
        now
            Time in seconds since the epoch.
        height
            Lines that there are; clients who are fine are left out first.
        """
        reasons = self._reasons(now, height)
        room = None if height is None else max(2, height - _HEADER_LINES - 1 - len(reasons))
        return Group(self._header(now), self._table(now, room), *reasons)

    def _reasons(self, now: float, height: int | None) -> list[Text]:
        """Return why clients are lost, below the table, whose columns would have no room."""
        found = [
            (client, str(own["reason"]))
            for client, own in self._clients(now).items()
            if own.get("reason")
        ]
        most = len(found) if height is None else max(1, height // 4)
        kept = found if len(found) <= most else found[: most - 1]
        lines = [
            Text(
                f"client {client}: {reason}",
                no_wrap=height is not None,
                overflow="fold" if height is None else "ellipsis",
            )
            for client, reason in kept
        ]
        if len(kept) < len(found):
            lines.append(Text(f"and {len(found) - len(kept)} more in status.json"))
        return lines

    def _doing(self, now: float) -> str:
        """Say how the run ended, or whether a process still works on it."""
        if self.outcome:
            return self.outcome
        quiet_s = now - self.folder.events.stat().st_mtime if self.folder.events.is_file() else 0.0
        if quiet_s < _QUIET_S or self.folder.is_held():
            return _GOING_ON
        return f"stopped: no process works on it; fedlora resume {self.folder.path} goes on with it"

    def _header(self, now: float) -> Text:
        state, phase = self.state, self.state.phase
        lines = [f"{self.folder.path}  {self._doing(now)}"]
        if phase is None:
            lines.append("no step yet")
        else:
            speed = phase.steps_per_second
            pace = ABSENT if speed is None else f"{speed:.2f}"
            age = "" if self.done else f", {_age(phase.latest, now)} ago"
            told = MetricText(phase.metric_name or "metric")
            evaluated = f", {phase.evaluated}" if phase.evaluated else ""
            lines += [
                (
                    f"{phase.name}: round {phase.round}/{phase.rounds}, "
                    f"step {phase.step}/{phase.total_steps}{evaluated}{age}"
                ),
                (
                    f"{pace} steps/s, {count_text(phase.tokens_per_second)} tokens/s, "
                    f"up {bits_text(phase.bits_up)}, down {bits_text(phase.bits_down)}"
                ),
                (
                    f"loss {number_text(phase.loss)}, "
                    f"{told.name} {told.text(phase.metric)}, "
                    f"mean rank {number_text(finite(state.last.get('mean_rank')))}, "
                    f"epsilon {number_text(state.epsilon)}"
                ),
            ]
            if state.totals["air_seconds"]:
                lines.append(
                    f"air {seconds_text(state.totals['air_seconds'])}, "
                    f"{state.totals['late_deliveries']:.0f} late deliveries"
                )
        lines += serving_lines(self.folder)
        counts = Counter(str(status.get("state")) for status in self._clients(now).values())
        lines.append(", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
        return Text("\n".join(lines))

    def _clients(self, now: float) -> dict[str, ClientStatus]:
        """Return the clients' states; of a run without any, those in its last round.

        Where no process works on the run any more nobody is connected, whatever was written last.
        """
        known = dict(self.state.clients)
        for client in self.state.last.get("clients") or {}:
            known.setdefault(client, ClientStatus())
        if self._doing(now) == _GOING_ON:
            return known
        for client, own in known.items():
            if own.get("state") in _HERE:
                known[client] = own | ClientStatus(state="ended")
        return known

    def _table(self, now: float, room: int | None) -> Table:
        clients = self._clients(now)
        shown = list(clients)
        if room is not None and len(shown) > room:
            shown.sort(key=lambda c: clients[c].get("state") in ("connected", "ended"))
            shown = shown[: room - 1]
        rows = [self._row(client, clients[client], now) for client in shown]
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        columns = [
            name
            for name in (rows[0] if rows else ("client", "state"))
            if name not in _WHERE_TOLD or any(row[name] for row in rows)
        ]
        for name in columns:
            text = name in ("client", "state")
            table.add_column(name, justify="left" if text else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row[n], style=_STYLES.get(row[n], "")) for n in columns))
        if len(shown) < len(clients):
            table.add_row("…", f"{len(clients) - len(shown)} more")
        return table

    def _row(self, client: str, status: ClientStatus, now: float) -> dict[str, str]:
        """Return a client's cells by heading; units are in the headings, so 80 columns suffice."""
        record = self.state.client_record(client)
        told = MetricText(str(self.state.last.get("metric_name") or "metric"))
        seen = finite(status.get("last_seen"))
        epsilon, misses = finite(record.get("epsilon")), finite(status.get("misses"))
        return {
            "client": client,
            "state": str(status.get("state") or ABSENT),
            "seen": ABSENT if seen is None else seconds_text(max(0.0, now - seen)),
            "answer ms": _scaled(status.get("answer_seconds"), 1e3),
            "Mbit/s": _scaled(record.get("rate_bps"), 1e-6),
            "up MB": _scaled(status.get("wire_up"), 1e-6),
            "down MB": _scaled(status.get("wire_down"), 1e-6),
            "rank": number_text(finite(record.get("mean_rank"))),
            f"{told.name} {told.unit}" if told.unit else "metric": told.figure(
                finite(record.get("metric"))
            ),
            "epsilon": "" if epsilon is None else number_text(epsilon),
            "misses": count_text(misses) if misses else "",
        }


def _scaled(value: object, factor: float) -> str:
    found = finite(value)
    if found is None:
        return ABSENT
    return f"{found * factor:.3g}" if found * factor < 1000 else f"{found * factor:,.0f}"


def _age(moment: float | None, now: float) -> str:
    return ABSENT if moment is None else seconds_text(max(0.0, now - moment))
