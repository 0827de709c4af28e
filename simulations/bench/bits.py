"""Bits at the cut beside those of the raw cut, and what they cost in quality.

Each scenario is trained with the same seeds twice: with fp32 payloads, as it stands, and with the
cheapest payloads that were found to keep its quality. Counted is all that crosses in training with
its framing: the first pass, scales, identifiers and headers; adapters and evaluation are not. The
raw cut is that of ``Geometry.raw_bits``.

Federated LoRA is counted beside it: FedAvg over the same adapters and head, fp32, up and down once
a round of ``LOCAL_STEPS`` steps of ``LOCAL_ROWS`` rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fedlora.config import Scenario, with_overrides
from fedlora.report.records import cut_bits
from fedlora.scenarios import find_scenario
from simulations.bench.context import Context, Tick
from simulations.bench.figures import Figure
from simulations.bench.settings import Settings
from simulations.in_process import Federation, Record

BEST: Mapping[str, tuple[str, ...]] = {
    "quickstart": ("link.activation=rotated", "link.r_cut=19"),
    "sst2-minilm": ("link.activation=rotated", "link.activation_bits=4", "link.r_cut=1"),
    "e2e-tinystories": (
        "model.server_norm=true",
        "link.activation=rotated",
        "link.activation_bits=4",
        "link.representation=rotated",
        "link.representation_bits=5",
        "link.gradient=rotated",
        "link.gradient_bits=3",
    ),
}
_PLAIN = ("privacy.epsilon=none", "channel.deliver_every=0", "ranks.strategy=uniform", "data.test=")
LOCAL_STEPS, LOCAL_ROWS = 10, 8
_CLIENTS, _ROWS = 8, 4
_MOST_RAW = {"sst2-minilm": 0.01, "e2e-tinystories": 0.036}
_MOST_WITH_HEAD = {"sst2-minilm": 0.011}
_MOST_TO_FEDAVG = {"sst2-minilm": 1 / 3}
_MOST_POINTS, _MOST_PERPLEXITY = 0.5, 1.01


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    bits, head_bits
        At the cut in training, with framing, both ways: without the head's, and the head's.
    raw_bits
        Of the raw cut.
    rows
        That were trained on, each time.
    metric
        Held out, at the end.
    adapter, head
        Numbers of the adapters and of the head.
    """

    bits: float
    head_bits: float
    raw_bits: float
    rows: int
    metric: float
    higher_is_better: bool
    adapter: int
    head: int


def bits_at_the_cut(context: Context, name: str, tick: Tick) -> list[Figure]:
    """Train a scenario with fp32 and with few bits, and compare."""
    exact, best = list[Outcome](), list[Outcome]()
    for seed in range(context.settings.bits_seeds):
        for found, more in ((exact, ()), (best, BEST[name])):
            found.append(_run(_scenario(context.settings, name, seed, more)))
            tick()
    raw = fmean(run.raw_bits for run in best)
    few = fmean(run.bits for run in best)
    head = fmean(run.head_bits for run in best)
    figures = [
        Figure("best_to_raw", few / raw, "ratio", at_most=_MOST_RAW.get(name)),
        Figure("best_to_raw_16_bit", 2 * few / raw, "ratio"),
        Figure("with_head_to_raw", (few + head) / raw, "ratio", at_most=_MOST_WITH_HEAD.get(name)),
        Figure("fp32_to_raw", fmean(run.bits for run in exact) / raw, "ratio"),
        Figure("bits_a_sample", (few + head) / best[0].rows, "bit"),
        Figure(
            "to_fedavg_lora",
            _to_federated(best[0], few + head),
            "ratio",
            at_most=_MOST_TO_FEDAVG.get(name),
        ),
    ]
    before, after = (fmean(run.metric for run in runs) for runs in (exact, best))
    if best[0].higher_is_better:
        figures += [
            Figure("accuracy", after, "ratio"),
            Figure("accuracy_lost", 100 * (before - after), "points", at_most=_MOST_POINTS),
        ]
    else:
        figures += [
            Figure("perplexity", after, "ratio"),
            Figure("perplexity_ratio", after / before, "ratio", at_most=_MOST_PERPLEXITY),
        ]
    return figures


def ticks(settings: Settings) -> int:
    """Return the runs."""
    return 2 * settings.bits_seeds


def _scenario(settings: Settings, name: str, seed: int, more: tuple[str, ...]) -> Scenario:
    """Return a scenario in which every client goes through its rows so many times.

    Rows are dealt evenly, as a client with few rows would otherwise go through them more often.
    """
    own = settings.bits_rows / _CLIENTS
    return with_overrides(
        find_scenario(name),
        [
            f"seed={seed}",
            f"data.max_rows={settings.bits_rows}",
            "partition.kind=iid",
            f"federation.clients={_CLIENTS}",
            f"train.batch_size={_ROWS}",
            f"train.rounds={settings.bits_epochs}",
            f"train.steps={math.ceil(own / _ROWS)}",
            f"evaluate.every={settings.bits_epochs}",
            "evaluate.baseline=false",
            "compute.threads=1",
            *(_PLAIN if name == "quickstart" else ()),
            *more,
        ],
    )


def _run(scenario: Scenario) -> Outcome:
    record = Record()
    federation = Federation(scenario, record, workers=1)
    server = federation.server
    server.training.run()
    totals = server.air.ledger.totals()
    bits = totals["bits"]
    head = bits["up"]["head"] + bits["down"]["head"]
    wire = 8 * (totals["wire_bytes"]["up"] + totals["wire_bytes"]["down"])
    assert wire >= cut_bits(bits) and not bits["down"]["adapter"]
    metric = record.rounds[-1]["metric"]
    assert metric is not None
    weights = federation.clients[0].head.module.parameters()
    return Outcome(
        bits=wire - head,
        head_bits=head,
        raw_bits=sum(own["raw_bits"] for own in record.rounds),
        rows=sum(c["rows"] for own in record.rounds for c in own["clients"].values()),
        metric=metric,
        higher_is_better=record.rounds[-1]["higher_is_better"],
        adapter=sum(p.A.numel() + p.B.numel() for p in server.engine.projections),
        head=sum(w.numel() for w in weights if w.requires_grad),
    )


def _to_federated(run: Outcome, bits: float) -> float:
    """Return the bits of a client's round over those of federated LoRA.

    The adapter is delivered once, at the end, and counted.
    """
    a_round = LOCAL_STEPS * LOCAL_ROWS
    rounds = run.rows / _CLIENTS / a_round
    split = bits / run.rows * a_round + 32 * run.adapter / rounds
    return split / (2 * 32 * (run.adapter + run.head))
