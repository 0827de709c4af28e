"""The report page: one HTML file that opens without a network."""

from __future__ import annotations

import base64
import datetime
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedlora.checks import finite
from fedlora.report.gallery import AUDIT_GALLERY, GALLERY, Plot, write_plots
from fedlora.report.records import DIRECTIONS, Rounds, client_ids, client_totals
from fedlora.report.rows import (
    NO_PRIVACY,
    adjacency_text,
    client_table,
    headline,
    metric_of,
    privacy_text,
    result_rows,
)
from fedlora.report.run_folder import RunFolder
from fedlora.report.summary import Summary
from fedlora.report.units import ABSENT, bits_text, bytes_text, count_text
from fedlora.storage import replace_file

STATED = ("epsilon", "delta", "adjacency", "covers", "excludes", "guarantee")
MAX_NOTICES = 20


def write_report(folder: RunFolder | Path | str, formats: Sequence[str] = ()) -> Path:
    """Draw the plots and write ``report.html`` from what a run folder holds.

    Works for a run that was interrupted too: without a summary, the rounds are added up.

    Parameters
    ----------
    folder
        The run folder.
    formats
        Further formats of the plots' files beside PNG.

    Returns
    -------
    Path
        The page. It loads nothing: plots are inside as base64, and its content policy forbids
        the browser to fetch anything.

    Raises
    ------
    FedloraError
        When the page cannot be written.
    """
    if not isinstance(folder, RunFolder):
        folder = RunFolder(folder)
    write_plots(folder, formats)
    # what devices told may hold halves of characters
    replace_file(folder.report, render(folder).encode(errors="replace"))
    return folder.report


def render(folder: RunFolder) -> str:
    """Return the page's HTML, every value escaped."""
    rounds = folder.read_metrics()
    summary = folder.read_summary() or _added_up(rounds)
    events, _ = folder.read_events()
    environment = Environment(
        loader=PackageLoader("fedlora", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    header, rows = client_table(client_totals(rounds), metric_of(summary).key, wide=True)
    scenario = _text(folder.scenario)
    return environment.get_template("page.html").render(
        name=_name(scenario) or folder.path.resolve().name,
        status=_status(events),
        started=_started(events),
        headline=headline(summary),
        tiles=_tiles(summary),
        result=result_rows(summary),
        client_header=header,
        client_rows=rows,
        plots=_plots(folder, GALLERY),
        audit=_audit(folder),
        privacy=_privacy(summary.get("privacy")),
        notices=_notices(events),
        limits=_limits(summary),
        scenario=scenario,
        versions=summary.get("versions") or {},
        commit=summary.get("commit"),
    )


def _added_up(rounds: Rounds) -> dict[str, Any]:
    last = rounds[-1] if rounds else {}
    summary = Summary.from_rounds(
        rounds,
        metric_name=last.get("metric_name", "metric"),
        higher_is_better=last.get("higher_is_better", True),
        clients=len(client_ids(rounds)),
        seed=0,
        trainable_parameters=0,
    ).to_dict()
    return {
        key: value for key, value in summary.items() if key not in ("seed", "trainable_parameters")
    }


def _status(events: list[dict[str, Any]]) -> str:
    for event in reversed(events):
        if event.get("event") == "done":
            text = str(event.get("text") or "")
            return {
                "finished": "",
                "interrupted": f"The run was interrupted; what was finished is shown. {text}",
                "failed": f"The run failed; what was finished is shown. {text}",
            }.get(str(event.get("status")), text).strip()
    return "The run has not ended; what was finished so far is shown."


def _started(events: list[dict[str, Any]]) -> str:
    times = [time for event in events if (time := finite(event.get("time"))) is not None]
    if not times:
        return ""
    start = datetime.datetime.fromtimestamp(times[0], tz=datetime.UTC)
    return start.strftime("%Y-%m-%d %H:%M UTC")


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    metric, before = finite(summary.get("metric")), finite(summary.get("metric_before"))
    privacy = summary.get("privacy") or {}
    bits = summary.get("bits") or {}
    sent = {
        way: sum(finite((bits.get(way) or {}).get(kind)) or 0.0 for kind in kinds)
        for way, kinds in DIRECTIONS.items()
    }
    told, gain = metric_of(summary), ""
    if metric is not None and before is not None:
        gain = f"{told.signed(before, metric)} on the head alone"
    rank = finite(summary.get("mean_rank"))
    tiles = [
        (told.name, told.text(metric), gain),
        ("epsilon", *(privacy_text(privacy) if privacy else ("none", NO_PRIVACY))),
        ("mean rank", ABSENT if rank is None else f"{rank:.2f}", "of each projection"),
        ("uplink", bits_text(sent["up"]), "payload, all clients"),
        ("downlink", bits_text(sent["down"]), "payload, all clients"),
        ("speed", count_text(finite(summary.get("tokens_per_second"))), "tokens/s"),
    ]
    return [tile for tile in tiles if tile[1] != ABSENT]


def _audit(folder: RunFolder) -> dict[str, Any] | None:
    found = folder.read_audit()
    if found is None:
        return None
    rows = [row for row in found.get("rows") or () if isinstance(row, list)]
    return {
        "passed": bool(found.get("passed")),
        "steps": count_text(finite(found.get("steps"))),
        "rows": [[str(cell) for cell in row] for row in rows],
        "findings": _as_list(found.get("findings")),
        "plots": _plots(folder, AUDIT_GALLERY),
    }


def _plots(folder: RunFolder, gallery: Sequence[Plot]) -> list[dict[str, str]]:
    found = []
    for plot in gallery:
        path = folder.plots / f"{plot.name}.png"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            found.append({"title": plot.title, "caption": plot.caption, "data": data})
    return found


def _privacy(privacy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not privacy:
        return None
    figure, terms = privacy_text(privacy)
    epsilon = finite(privacy.get("epsilon"))
    if epsilon is None or privacy.get("guarantee") is False:
        meaning = "The noise of this run can be repeated or was not accounted: it protects nobody."
    else:
        meaning = (
            "Whoever sees all that is covered can raise the odds of a guess about one sample by "
            f"a factor of at most {_odds(epsilon)}, but for the probability delta. The figure "
            f"is that of the client that spent most, under {adjacency_text(privacy)} adjacency."
        )
    return {
        "figure": f"epsilon {figure}",
        "terms": terms,
        "meaning": meaning,
        "covers": _as_list(privacy.get("covers")),
        "excludes": _as_list(privacy.get("excludes")),
        "further": {
            name: _value(value)
            for key, found in privacy.items()
            if key not in STATED
            for name, value in _named(key, found)
        },
    }


def _odds(epsilon: float) -> str:
    if epsilon >= 14:
        return f"{math.exp(min(epsilon, 700)):.1e}"
    odds = math.exp(epsilon)
    return f"{odds:.1f}" if odds < 100 else count_text(odds)


def _notices(events: list[dict[str, Any]]) -> list[str]:
    texts = [
        str(event.get("text"))
        for event in events
        if event.get("event") == "message" and event.get("level") in ("warning", "error")
    ]
    more = len(texts) - MAX_NOTICES
    return texts[:MAX_NOTICES] + ([f"and {more} more in log.txt"] if more > 0 else [])


def _limits(summary: Mapping[str, Any]) -> list[str]:
    seed = finite(summary.get("seed"))
    limits = [
        "One run"
        + ("" if seed is None else f" with seed {seed:.0f}")
        + ": how far the result varies with the seed takes several runs to know.",
        "Speed and memory hold for the machine and the versions named below.",
    ]
    wire = summary.get("wire_bytes") or {}
    if any(wire.values()):
        up, down = (bytes_text(finite(wire.get(way))) for way in ("up", "down"))
        limits.append(
            f"Bits count payload; with framing {up} went up and {down} came down on the stream."
        )
    if summary.get("air_seconds"):
        limits.append(
            "Air time follows from the channel model and the bits; it was not measured on a radio."
        )
    if summary.get("metric_before") is None:
        limits.append("No baseline was run, so what the adapters add to the head is not known.")
    return limits


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


def _named(key: str, value: object) -> list[tuple[str, object]]:
    """Return a value, or those of a table, each under its own name."""
    name = key.replace("_", " ")
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [pair for k, v in value.items() for pair in _named(f"{key}: {k}", v)]


def _value(value: object) -> str:
    if value is None:
        return "none"
    amount = finite(value)
    if amount is not None:
        return f"{amount:g}"
    return (
        {True: "yes", False: "no"}[value] if isinstance(value, bool) else ", ".join(_as_list(value))
    )


def _name(scenario: str) -> str:
    try:
        return str(tomllib.loads(scenario).get("name", ""))
    except tomllib.TOMLDecodeError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
