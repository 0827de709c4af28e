"""The rows of the result tables, shared by the terminal and the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.checks import finite
from fedlora.report.records import DIRECTIONS, ClientTotals, cut_bits
from fedlora.report.units import (
    ABSENT,
    MetricText,
    bits_scale,
    bits_text,
    bytes_text,
    count_text,
    energy_scale,
    energy_text,
    number_text,
    seconds_text,
)

Row = tuple[str, str, str]
"""Name, value, remark."""

_STATISTICS = (
    ("surprisal\nbits", "token_surprisal", "{:.1f}"),
    ("types a\ntoken", "type_token_ratio", "{:.2f}"),
    ("tokens\na word", "pieces_per_word", "{:.2f}"),
    ("tokens\na row", "mean_length", "{:.1f}"),
)
"""Header, name and form of the statistics of a client's text."""

_REMARKS = {
    "auc": "one class against the rest, mean over classes",
    "bleu": "0 to 100, of texts written after held-out prompts",
    "exact_match": "texts equal to their records",
    "macro_f1": "mean over classes, held out",
    "rouge_l": "F1, mean over texts written after held-out prompts",
    "token_accuracy": "of target tokens, held out",
}
_NAMED = 5
_HARDLY = 0.2
"""Part of the adapters in time up to which the end of a run says what would help."""
NO_PRIVACY = "no differential privacy"


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one sentence what the run came to."""
    told = metric_of(summary)
    metric, before = finite(summary.get("metric")), finite(summary.get("metric_before"))
    done = f"after {plural(summary.get('rounds'), 'round')}"
    done += f" with {plural(summary.get('clients'), 'client')}"
    lost = summary.get("lost_clients") or ()
    done += f" ({len(lost)} lost)" if lost else ""
    idle = finite(summary.get("untrained_rounds"))
    if idle and idle == finite(summary.get("rounds")):
        done += ", whose adapter was never trained"
    loss = finite(summary.get("loss"))
    if metric is None and loss is not None:
        return (
            f"{told.title} on held-out data is beyond what a number holds {done}, at a loss of "
            f"{number_text(loss)}: lower train.lr, or mend the model's weights."
        )
    if metric is None and finite((summary.get("privacy") or {}).get("epsilon")) is not None:
        return (
            f"No held-out metric was told {done}: in a run with noise the scenario "
            "(evaluate.report) and each device's owner (privacy-report) have to allow it."
        )
    if metric is None:
        return f"No evaluation was reached {done}."
    text = f"{told.title} {told.text(metric)} on held-out data {done}"
    air = air_notice(summary)
    if before is None:
        return f"{text}.{air}"
    reference = "the same head on the frozen backbone"
    difference = told.difference(before, metric)
    if difference == told.difference(0.0, 0.0):
        return f"{text}, the same as {reference}.{air}"
    word = "better" if (metric > before) == summary.get("higher_is_better", True) else "worse"
    return f"{text}, {difference} {word} than {reference} ({told.text(before)}).{air}"


def metric_of(summary: Mapping[str, Any]) -> MetricText:
    """Return how the metric of a run is told."""
    return MetricText(str(summary.get("metric_name") or "metric"))


def air_notice(summary: Mapping[str, Any]) -> str:
    """Say where the modelled channel let hardly any adapter through, and what would help."""
    due = finite(summary.get("deliveries_due")) or 0
    in_time = due - (finite(summary.get("late_deliveries")) or 0)
    if not due or in_time > _HARDLY * due:
        return ""
    return (
        f" Only {in_time:.0f} of {due:.0f} adapters arrived within channel.deadline_s, so that "
        "clients were evaluated with old ones or none: lower the ranks (ranks.options.r, or a "
        "strategy that follows the channel, such as greedy), or raise channel.deadline_s, "
        "channel.bandwidth_hz or channel.snr_db."
    )


def result_rows(summary: Mapping[str, Any]) -> list[list[Row]]:
    """Return the result table in groups: result, work, traffic, air, privacy."""
    return [
        _result(summary),
        _work(summary),
        _traffic(summary),
        _ranks_and_air(summary),
        [_privacy(summary.get("privacy"))],
    ]


def client_table(
    totals: Sequence[ClientTotals], metric_name: str, *, wide: bool
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the header (name, line break, unit) and a row for each client.

    Columns that nobody has a value in are left out, and where it is not ``wide``, as on a terminal
    of 80 columns, rows trained on in the last round, energy and the statistics of the text.
    """
    told = MetricText(metric_name)
    heading = f"{told.name}\n{told.unit}" if told.unit else told.name
    lost = [str(item.rounds_lost) if item.rounds_lost else ABSENT for item in totals]
    columns: list[tuple[str, list[str]]] = [
        ("client", [item.client for item in totals]),
        ("rows in\nlast round", [count_text(item.rows) if wide else ABSENT for item in totals]),
        (heading, [told.figure(item.metric) for item in totals]),
        ("SNR\ndB", [_optional(item.snr_db, "{:.1f}") for item in totals]),
        ("mean\nrank", [_optional(item.mean_rank, "{:.1f}") for item in totals]),
        bits_column("up", [item.bits_up for item in totals]),
        bits_column("down", [item.bits_down for item in totals]),
        bits_column("LoRA", [item.adapter_bits for item in totals]),
        ("in\ntime", [_delivered(item) for item in totals]),
        _energy_column([item.energy_joules if wide else None for item in totals]),
        ("epsilon", [_optional(item.epsilon, "{:.2f}") for item in totals]),
        ("lost", lost),
        *(_statistics_column(totals, *column) for column in _STATISTICS if wide),
    ]
    kept = [(name, cells) for name, cells in columns if any(cell != ABSENT for cell in cells)]
    return [name for name, _ in kept], list(zip(*(cells for _, cells in kept), strict=True))


def _result(summary: Mapping[str, Any]) -> list[Row]:
    higher = bool(summary.get("higher_is_better", True))
    metric, before = finite(summary.get("metric")), finite(summary.get("metric_before"))
    told = metric_of(summary)
    value = told.text(metric)
    if before is not None:
        value = f"{told.figure(before)} → {value}"
    remark = "↑ higher is better" if higher else "↓ lower is better"
    if metric is not None and before is not None:
        remark = f"{told.signed(before, metric)}, {remark}"
    rows = [(told.name, value, remark)]
    rows += [("loss", number_text(finite(summary.get("loss"))), "held out")]
    for more, own in (summary.get("metrics") or {}).items():
        if more not in (told.key, "loss"):
            remark = _REMARKS.get(more, "")
            if more == "auc" and (absent := summary.get("auc_absent")):
                remark += f"; {len(absent)} of them without rows left out"
            further = MetricText(more)
            rows.append((further.name, further.text(finite(own)), remark))
    kept = finite(summary.get("kept_round"))
    if kept is not None:
        rows.append(("kept", f"round {kept:.0f}", "the best; its metric chose it"))
    if summary.get("ended_early"):
        rows.append(("ended", "early", "no better metric for evaluate.patience evaluations"))
    return rows


def _work(summary: Mapping[str, Any]) -> list[Row]:
    def pace(key: str, unit: str) -> str:
        value = finite(summary.get(key))
        if value is None:
            return ""
        return f"{number_text(value) if value < 100 else count_text(value)} {unit}"

    rows: list[Row] = [
        ("rounds", count_text(finite(summary.get("rounds"))), ""),
        (
            "steps",
            count_text(finite(summary.get("steps"))),
            pace("steps_per_second", "steps/s"),
        ),
        ("clients", count_text(finite(summary.get("clients"))), _lost(summary)),
        (
            "tokens",
            count_text(finite(summary.get("tokens"))),
            pace("tokens_per_second", "tokens/s"),
        ),
        ("time", seconds_text(finite(summary.get("seconds"))), "rounds with evaluation"),
        (
            "trainable parameters",
            count_text(finite(summary.get("trainable_parameters"))),
            "adapters on the server",
        ),
    ]
    if (form := summary.get("weights", "fp32")) != "fp32":
        rows.append(("frozen matrices", str(form), "model.weights, of the server's blocks"))
    rows += _untrained(summary)
    for name, key in (("server", "peak_rss_server_bytes"), ("edge", "peak_rss_edge_bytes")):
        size = finite(summary.get(key))
        if size is not None:
            rows.append((f"{name} memory", bytes_text(size), "peak resident"))
    return rows


def _untrained(summary: Mapping[str, Any]) -> list[Row]:
    """Say what of the adapter has not been trained, where anything was to be."""
    rounds, idle = finite(summary.get("rounds")) or 0, finite(summary.get("untrained_rounds")) or 0
    resting = finite(summary.get("resting_components")) or 0
    remark = "too few clients for robust.hostile" if resting else "all ranks were 0"
    if idle:
        value = f"no, in {count_text(idle)} of {plural(rounds, 'round')}"
        return [("adapter trained", value, remark)]
    if resting:
        return [("adapter trained", f"but for {plural(resting, 'component')}", remark)]
    return []


def _lost(summary: Mapping[str, Any]) -> str:
    """Name the clients that were gone at the end, the first few of many."""
    lost = [str(client) for client in summary.get("lost_clients") or ()]
    named = ", ".join(lost[:_NAMED]) + (", ..." if len(lost) > _NAMED else "")
    return f"{len(lost)} lost: {named}" if lost else ""


def _traffic(summary: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    bits = summary.get("bits") or {}
    for way, training in DIRECTIONS.items():
        kinds = {kind: finite(value) or 0.0 for kind, value in (bits.get(way) or {}).items()}
        total = sum(kinds.get(kind, 0.0) for kind in training)
        rows.append((f"bits {way}", bits_text(total), "payload of training, without framing"))
        for kind, value in kinds.items():
            if value:
                remark = "" if kind in training else "besides training"
                rows.append((f"  {kind}", bits_text(value), remark))
    return rows + _cut(summary)


def _cut(summary: Mapping[str, Any]) -> list[Row]:
    """Return what a sample took at the cut, beside the raw cut's; adapters are told apart."""
    raw, samples = finite(summary.get("raw_bits")), finite(summary.get("samples"))
    if not raw or not samples:
        return []
    bits = cut_bits(summary.get("bits") or {})
    remark = f"{bits / raw:.1%} of fp32 each way at every step; without adapters"
    return [("bits a sample", bits_text(bits / samples), remark)]


def _ranks_and_air(summary: Mapping[str, Any]) -> list[Row]:
    rank, air_seconds = finite(summary.get("mean_rank")), finite(summary.get("air_seconds"))
    rows: list[Row] = [
        ("mean rank", _optional(rank, "{:.2f}"), "over rounds, clients, projections"),
    ]
    if not air_seconds:  # no channel was modelled
        return rows
    late = count_text(finite(summary.get("late_deliveries")))
    return [
        *rows,
        ("air time", seconds_text(air_seconds), "modelled; slowest client, every round"),
        ("energy", energy_text(finite(summary.get("energy_joules"))), "on the air, both ends"),
        ("late deliveries", late, "adapters past their deadline"),
    ]


def privacy_text(privacy: Mapping[str, Any]) -> tuple[str, str]:
    """Return epsilon, and delta with the adjacency that it holds for."""
    epsilon, delta = finite(privacy.get("epsilon")), finite(privacy.get("delta")) or 0.0
    if epsilon is None or privacy.get("guarantee") is False:
        return _optional(epsilon, "{:.2f}"), "without guarantee"
    return f"{epsilon:.2f}", f"at delta {delta:g}, {adjacency_text(privacy)}"


def adjacency_text(privacy: Mapping[str, Any]) -> str:
    """Return the name of the adjacency as the field writes it, such as ``replace-one``."""
    return str(privacy.get("adjacency") or "unstated").replace("_", "-")


def _privacy(privacy: Mapping[str, Any] | None) -> Row:
    if not privacy:
        return ("privacy", "none", NO_PRIVACY)
    return ("epsilon", *privacy_text(privacy))


def bits_column(way: str, values: Sequence[float]) -> tuple[str, list[str]]:
    """Return a header (name, line break, unit) and the cells of a column of bits.

    Where one decimal in the largest's unit would leave the smallest a digit, it is the smallest's,
    as long as the largest has five digits before the point in it.
    """
    largest, least = max(values, default=0.0), min(filter(None, values), default=0.0)
    (scale, unit), finer = bits_scale(largest), bits_scale(least)
    if least < 0.5 * scale and largest < 1e5 * finer[0]:
        scale, unit = finer
    return f"{way}\n{unit}", [f"{v / scale:,.1f}" if largest else ABSENT for v in values]


def _energy_column(values: Sequence[float | None]) -> tuple[str, list[str]]:
    scale, unit = energy_scale(max((value or 0.0 for value in values), default=0.0))
    return f"energy\n{unit}", [ABSENT if v is None else f"{v / scale:,.1f}" for v in values]


def _statistics_column(
    totals: Sequence[ClientTotals], header: str, name: str, form: str
) -> tuple[str, list[str]]:
    return header, [_optional(finite(item.statistics.get(name)), form) for item in totals]


def _delivered(item: ClientTotals) -> str:
    return f"{item.deliveries}/{item.deliveries_due}" if item.deliveries_due else ABSENT


def _optional(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def plural(count: object, noun: str) -> str:
    """Return a count with its noun, as a sentence has it."""
    value = finite(count)
    return f"{count_text(value)} {noun}" if value == 1 else f"{count_text(value)} {noun}s"
