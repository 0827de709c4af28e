"""What ``fedlora site`` prints: plain lines, as a journal or a mail shows them, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedlora.errors import printable
from fedlora.site.history import GOING_ON, KILLED, History, Session
from fedlora.site.ledgers import Verified
from fedlora.site.words import LEFT, budget_text, left_text, rows_text, wants_text


def lines(history: History, ledgers: Sequence[Verified], last: int) -> Iterator[str]:
    """Yield the lines of a view.

    Parameters
    ----------
    history, ledgers
        What there is.
    last
        The most sessions that are shown one by one, the latest; sums are over all.
    """
    sessions = list(history.sessions)
    shown = sessions[-last:]
    yield f"Invitations to runs: {len(sessions)}"
    if len(shown) < len(sessions):
        yield f"  the last {len(shown)}; --last {len(sessions)} shows all"
    for session in shown:
        yield ""
        yield from _session(session)
    texts = history.texts
    if texts.begun:
        cut = f" ({texts.begun - texts.over} cut off)" if texts.begun > texts.over else ""
        yield ""
        yield "Texts written with a server's blocks"
        left = left_text(texts.left)
        yield f"  {texts.begun}{cut}: {texts.tokens:,} tokens sent; bytes out {left}"
    yield ""
    yield "What left, in bytes by kind"
    yield from _totals(sessions, texts.left)
    yield ""
    yield "Budgets, by data set and time"
    yield from _budgets(sessions)
    yield ""
    yield "Ledgers"
    yield from _ledgers(ledgers)
    yield ""
    torn = f", {history.torn} torn by a crash or a full disk" if history.torn else ""
    yield f"Audit file: {history.lines} lines{torn}; each follows on the one before"


def _session(session: Session) -> Iterator[str]:
    asked = session.asked
    yield (
        f"  {_time(asked.get('time'))}  run {asked.get('run') or '?'} "
        f"{printable(asked.get('name', ''))!r}, client {asked.get('client') or '?'}"
    )
    yield f"    server     {asked.get('server', '')}"
    yield f"    scenario   sha256 {asked.get('scenario', '')}"
    yield f"    wants      {wants_text(asked.get('wants', {}))}"
    if session.accepted is None:
        told = session.state if session.over else f"no answer: {session.state}"
        yield f"    refused    {told}; device.log has the whole sentence"
        return
    yield f"    records    {rows_text(session.accepted['rows'])}; {session.accepted['data']}"
    yield f"    round      {session.round}, {session.samples:,} samples"
    yield f"    bytes out  {left_text(session.left)}"
    after = session.ledgers[-1] if session.ledgers else None
    yield f"    privacy    {budget_text(after, session.limit)}"
    more = "; its last uploads are in the ledger" if session.state in (KILLED, GOING_ON) else ""
    yield f"    ended      {session.state}{more if after else ''}"


def _totals(sessions: Sequence[Session], texts: Mapping[str, int]) -> Iterator[str]:
    total: Counter[str] = Counter(texts)
    for session in sessions:
        total.update(session.left)
    for kind in LEFT:
        yield f"  {kind:12} {total[kind]:>18,}"


def _budgets(sessions: Sequence[Session]) -> Iterator[str]:
    by_data: dict[str, list[Session]] = {}
    for session in sessions:
        if session.accepted is not None:
            by_data.setdefault(session.accepted["data"], []).append(session)
    if not by_data:
        yield "  no run was accepted"
    for data, own in by_data.items():
        yield f"  {data}"
        for session in own:
            ledgers = session.ledgers
            spent = budget_text(ledgers[-1] if ledgers else None, session.limit)
            begun = f"; before it {_epsilon(ledgers[0])}" if ledgers else ""
            yield (
                f"    {_time(session.asked.get('time'))}  run {session.asked.get('run')}, client "
                f"{session.asked.get('client')}: {spent}{begun}"
            )


def _ledgers(ledgers: Sequence[Verified]) -> Iterator[str]:
    if not ledgers:
        yield "  none: no run with noise was accepted"
    for ledger in ledgers:
        yield f"  {ledger.path}, client {ledger.client}"
        if ledger.fault:
            yield f"    NOT WHOLE: {ledger.fault}"
            continue
        spent = budget_text({"epsilon": ledger.epsilon}, ledger.limit)
        yield f"    whole: {ledger.charges:,} charges, {ledger.records:,} records; {spent}"


def _time(text: object) -> str:
    """Return an event's time as people read it."""
    return str(text or "?").replace("T", " ")[:19] + ("Z" if text else "")


def _epsilon(ledger: Mapping[str, Any]) -> str:
    value = ledger.get("epsilon")
    return "unknown" if value is None else f"{value:.4g}"
