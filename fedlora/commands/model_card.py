"""The model card of an export: a README.md with the front matter that the hub reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fedlora.commands.card_lines import PACKAGE, Export, loading_lines
from fedlora.commands.prompts import TaskFacts
from fedlora.config import Scenario
from fedlora.errors import printable
from fedlora.report import MetricText, plural

_HUB = "hub:"


def model_card(
    export: Export,
    pooled: bool,
    facts: TaskFacts | None,
    scenario: Scenario | None,
    summary: Mapping[str, Any],
) -> str:
    """Return the text of the card.

    Parameters
    ----------
    export
        What was written.
    pooled
        Whether the run was a classifier's.
    facts, scenario, summary
        Of the run, as far as they are known. Of the data only names on the hub or in a package are
        told: other paths are the researcher's own.
    """
    name = _base_name(export)
    what = "Model" if export.merged else "LoRA adapter"
    parts = [
        _front_matter(export, pooled, scenario),
        f"# {what} trained with fedlora\n",
        f"- Base model: `{name}`" + (f", commit `{export.revision}`" if export.revision else ""),
        f"- Form: {_form(export)}",
        *_weights(export, scenario),
        *_task(export, pooled, scenario),
        *_data(export, scenario, summary),
        *_metric(summary),
        "",
        "## Privacy\n",
        _privacy(summary),
        "",
        "## How to load\n",
    ]
    if export.why_not:
        parts += [f"{_sentence(export.why_not)}\n"]
    if facts is not None:
        parts += ["```python", *loading_lines(export, facts, pooled=pooled), "```"]
    return "\n".join(parts) + "\n"


def _front_matter(export: Export, pooled: bool, scenario: Scenario | None) -> str:
    lines = ["---", f"library_name: {'transformers' if export.merged else 'peft'}"]
    if export.revision:
        lines += [f"base_model: {json.dumps(export.base)}"]
        lines += [f"base_model_relation: {'finetune' if export.merged else 'adapter'}"]
    if export.texts and (export.holder or not pooled):
        lines += [f"pipeline_tag: {'text-classification' if pooled else 'text-generation'}"]
    lines += ["tags:", "- fedlora", "- federated-learning", "- lora"]
    sources = () if scenario is None else (scenario.data.train, scenario.data.test)
    hub = sorted({s.removeprefix(_HUB) for s in sources if s.startswith(_HUB)})
    if hub:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in hub)]
    return "\n".join([*lines, "---\n"])


def _base_name(export: Export) -> str:
    if export.base.startswith(PACKAGE) or export.revision:
        return export.base
    return re.split(r"[/\\]", export.base.rstrip("/\\"))[-1]  # where it lies is nobody's business


def _form(export: Export) -> str:
    ranks = sorted(set(export.ranks))
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    whose = "" if export.client is None else f", as client {export.client} has it"
    return f"`{export.format_}`, {len(export.ranks)} projections, {shown}{whose}"


def _weights(export: Export, scenario: Scenario | None) -> list[str]:
    """Say over which weights the adapter was trained, if not over the base model's own."""
    form = None if scenario is None else scenario.model.few_bits
    if form is None or scenario is None:
        return []
    front, back = scenario.model.client_front, scenario.model.client_back
    but = f", but for the first {front} and the last {back}" if front or back else ""
    line = f"- Quantised base: trained over blocks whose matrices are kept as {form}{but}"
    if export.merged:
        return [f"{line}; the weights here hold what these come to, so that they compute the same"]
    line += "; over the base model as it is answers differ a little: `fedlora infer` and "
    return [line + "`fedlora export --format merged` compute with the same matrices as the run"]


def _task(export: Export, pooled: bool, scenario: Scenario | None) -> list[str]:
    if not export.texts and scenario is not None:
        return [f"- Task: `{scenario.task.kind}`, which reads no texts"]
    if not pooled:
        return ["- Task: continue a text"]
    pool = "" if scenario is None else f', `task.pool = "{scenario.task.pool}"`'
    names = () if export.head is None else export.head.names
    known = f" {len(names)} classes: {', '.join(printable(n, 80) for n in names)}" if names else ""
    return [f"- Task: classify a text{pool}.{known}"]


def _data(export: Export, scenario: Scenario | None, summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if scenario is not None:
        sources = [scenario.data.train, scenario.data.test]
        named = [s for s in sources if s.startswith((PACKAGE, _HUB))]
        told = ", ".join(f"`{s}`" for s in named) or "data that stays with those who hold it"
        lines += [f"- Data: {told}"]
    if "clients" in summary:
        nouns = {"clients": "client", "rounds": "round", "steps": "optimiser step"}
        counts = ", ".join(plural(summary.get(key), noun) for key, noun in nouns.items())
        what = "texts and labels" if export.texts else "records"
        lines.append(
            f"- Training: {counts}, seed {summary.get('seed')}; {what} stayed with the clients"
        )
    return lines


def _metric(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, of in (("metric", "adapter at r_max"), ("metric_before", "frozen backbone")):
        value = summary.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            told = MetricText(str(summary.get("metric_name", key)))
            kind = "Held-out" if key == "metric" else "For comparison, held-out"
            at = "" if key == "metric" else f" of a head on the {of}"
            lines += [
                f"- {kind} {told.name}{at}: {told.text(value) if told.unit else f'{value:.4g}'}"
            ]
    return lines


def _privacy(summary: Mapping[str, Any]) -> str:
    block = summary.get("privacy")
    if not isinstance(block, Mapping):
        return (
            "Trained without differential privacy: the weights may carry what single records say."
        )
    lines = []
    if block.get("epsilon") is not None:
        lines.append(
            f"Epsilon {block['epsilon']:.4g} at delta {block.get('delta')}, adjacency "
            f"{block.get('adjacency')}."
        )
    else:
        lines += ["No epsilon holds for this run."]
    own = block.get("adapter")
    for text in (block.get("warning"), own.get("meaning") if isinstance(own, Mapping) else None):
        lines += [f"\n{text}"] if text else []
    for title, key in (("Covered", "covers"), ("Not covered", "excludes")):
        lines += [f"\n{title}:\n", *(f"- {text}" for text in block.get(key) or ())]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
