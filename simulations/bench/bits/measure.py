"""Bits at the cut beside those of the raw cut, and what they cost in quality.

Each scenario is trained with the same seeds twice: with fp32 payloads, as it stands, and with the
cheapest payloads that were found to keep its quality. Counted is all that crosses in training with
its framing: the first pass, scales, identifiers and headers; adapters and evaluation are not. The
raw cut is that of ``Geometry.raw_bits``.

Federated LoRA is trained on the same rows beside it, as often: FedAvg over the same adapters and
head, fp32, up and down once a round of ``LOCAL_STEPS`` steps of ``LOCAL_ROWS`` rows a client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedlora.config import Scenario, with_overrides
from fedlora.link import DistinctCodec, Fp32Codec, TokensCodec
from fedlora.link.entropy import EntropyCodec
from fedlora.link.rotated import RotatedCodec
from fedlora.report import cut_bits
from fedlora.scenarios import find_scenario
from simulations.bench.bits.federated_lora import Averaged, FederatedLora
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.in_process import Federation, Record

BEST: Mapping[str, tuple[str, ...]] = {
    "quickstart": ("link.activation=rotated", "link.r_cut=19"),
    "sst2-minilm": ("link.activation=rotated", "link.activation_bits=4", "link.r_cut=1"),
    "e2e-tinystories": (
        "model.server_norm=true",
        "link.activation=rotated",
        "link.activation_bits=8",
        "link.representation=entropy",
        "link.representation_bits=4.7",
        "link.gradient=entropy",
        "link.gradient_bits=3.2",
    ),
}
"""By scenario: the cheapest payloads that were found to keep its quality."""
TOKENS = ("link.activation=tokens", "link.activation_bits=0")
"""In place of a language model's activations: which tokens they are."""
_MOST_TOKENS = 0.03
_LANGUAGE = ("e2e-tinystories",)
_PLAIN = ("privacy.epsilon=none", "channel.deliver_every=0", "ranks.strategy=uniform", "data.test=")
LOCAL_STEPS, LOCAL_ROWS = 10, 8
_CLIENTS, _ROWS = 8, 4
_MOST_RAW = {"sst2-minilm": 0.01, "e2e-tinystories": 0.036}
_MOST_WITH_HEAD = {"sst2-minilm": 0.011}
_MOST_TO_FEDAVG = {"sst2-minilm": 1 / 3}
_MOST_CODEC = 0.05
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
    adapter
        Numbers of the adapters.
    codec_share
        Part of the time that payloads were written and read in.
    """

    bits: float
    head_bits: float
    raw_bits: float
    rows: int
    metric: float
    higher_is_better: bool
    adapter: int
    codec_share: float

    @property
    def rounds_to_deliver(self) -> float:
        """Rounds of local steps that the run comes to, after which the adapter is delivered."""
        return self.rows / _CLIENTS / LOCAL_STEPS / LOCAL_ROWS


def bits_at_the_cut(context: Context, name: str, tick: Tick) -> list[Figure]:
    """Train a scenario with fp32 and with few bits, and compare."""
    exact, best, named, averaged = (list[Any]() for _ in range(4))
    ways: list[tuple[list[Outcome], tuple[str, ...]]] = [(exact, ()), (best, BEST[name])]
    if name in _LANGUAGE:
        ways.append((named, (*BEST[name], *TOKENS)))
    for seed in range(context.settings.bits_seeds):
        for found, more in ways:
            found.append(run_once(passes_of(context.settings, name, seed, more)))
            tick()
        averaged.append(_federated(context.settings, name, seed))
        tick()
    raw = fmean(run.raw_bits for run in best)
    few = fmean(run.bits for run in best)
    head = fmean(run.head_bits for run in best)
    figures = [
        Figure("best_to_raw", few / raw, "ratio", at_most=_MOST_RAW.get(name)),
        Figure("best_to_raw_16_bit", 2 * few / raw, "ratio"),
        Figure("with_head_to_raw", (few + head) / raw, "ratio", at_most=_MOST_WITH_HEAD.get(name)),
        Figure("fp32_to_raw", fmean(run.bits for run in exact) / raw, "ratio"),
        Figure(
            "codec_to_run", fmean(run.codec_share for run in best), "ratio", at_most=_MOST_CODEC
        ),
        Figure("bits_a_sample", (few + head) / best[0].rows, "bit"),
        Figure(
            "to_fedavg_lora",
            _a_round(best[0], few + head, deliveries=best[0].rounds_to_deliver) / averaged[0].bits,
            "ratio",
            at_most=_MOST_TO_FEDAVG.get(name),
        ),
    ]
    every = _a_round(best[0], few + head, deliveries=1) / averaged[0].bits
    figures.append(Figure("to_fedavg_lora_delivered_each_round", every, "ratio"))
    figures.append(
        Figure("edgeflowertune_to_fedavg_lora", _embeddings(best[0]) / averaged[0].bits, "ratio")
    )
    before, after = (fmean(run.metric for run in runs) for runs in (exact, best))
    if best[0].higher_is_better:
        figures += [
            Figure("accuracy", after, "ratio"),
            Figure("accuracy_of_fedavg_lora", fmean(a.accuracy or 0.0 for a in averaged), "ratio"),
            Figure("accuracy_lost", 100 * (before - after), "points", at_most=_MOST_POINTS),
        ]
    else:
        figures += [
            Figure("perplexity", after, "ratio"),
            Figure("perplexity_of_fedavg_lora", fmean(math.exp(a.loss) for a in averaged), "ratio"),
            Figure(
                "steps_of_8_rows_to_meet_fedavg_lora", _meets(best[0], few, averaged[0]), "steps"
            ),
            Figure("perplexity_ratio", after / before, "ratio", at_most=_MOST_PERPLEXITY),
            Figure(
                "tokens_to_raw",
                fmean(run.bits for run in named) / raw,
                "ratio",
                at_most=_MOST_TOKENS,
            ),
            Figure(
                "tokens_perplexity_ratio",
                fmean(run.metric for run in named) / before,
                "ratio",
                at_most=_MOST_PERPLEXITY,
            ),
        ]
    return figures


def ticks(settings: Settings, name: str) -> int:
    """Return the runs of a scenario."""
    return (3 + (name in _LANGUAGE)) * settings.bits_seeds


def passes_of(settings: Settings, name: str, seed: int, more: tuple[str, ...]) -> Scenario:
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


def run_once(scenario: Scenario) -> Outcome:
    """Train a scenario, and return what it took and came to."""
    record = Record()
    federation = Federation(scenario, record, workers=1)
    server = federation.server
    with _timed() as spent:
        server.training.run()
    totals = server.air.ledger.totals()
    bits = totals["bits"]
    head = bits["up"]["head"] + bits["down"]["head"]
    wire = 8 * (totals["wire_bytes"]["up"] + totals["wire_bytes"]["down"])
    assert wire >= cut_bits(bits) and not bits["down"]["adapter"]
    metric = record.rounds[-1]["metric"]
    assert metric is not None
    return Outcome(
        bits=wire - head,
        head_bits=head,
        raw_bits=sum(own["raw_bits"] for own in record.rounds),
        rows=sum(c["rows"] for own in record.rounds for c in own["clients"].values()),
        metric=metric,
        higher_is_better=record.rounds[-1]["higher_is_better"],
        adapter=sum(p.A.numel() + p.B.numel() for p in server.engine.projections),
        codec_share=spent[0] / sum(own["seconds"] for own in record.rounds),
    )


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Add up the seconds in which payloads are written and read."""
    spent, kept = [0.0], []
    for kind in (Fp32Codec, DistinctCodec, RotatedCodec, EntropyCodec, TokensCodec):
        for name in ("encode", "encode_drawn", "decode", "encode_beside", "decode_beside"):
            if not hasattr(kind, name):
                continue
            own: Any = getattr(kind, name)
            kept.append((kind, name, kind.__dict__.get(name)))
            setattr(kind, name, _timing(own, spent))
    try:
        yield spent
    finally:
        for kind, name, before in kept:
            if before is None:
                delattr(kind, name)
            else:
                setattr(kind, name, before)


def _timing(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = function(*arguments)
        spent[0] += time.perf_counter() - began
        return found

    return timed


def _a_round(run: Outcome, bits: float, *, deliveries: float) -> float:
    """Return the bits of a client and round of local steps, and of the adapter's deliveries.

    Parameters
    ----------
    run, bits
        A run, and what all of it took at the cut.
    deliveries
        Rounds that share one delivery of the adapter.
    """
    return bits / run.rows * LOCAL_STEPS * LOCAL_ROWS + 32 * run.adapter / deliveries


def _embeddings(run: Outcome) -> float:
    """Return the bits of a client and round in EdgeFlowerTune's scheme (arXiv 2605.08636).

    Computed: fp32 embeddings of all tokens go up at each step, a third of the raw cut, and nothing
    comes back.
    """
    return run.raw_bits / 3 / run.rows * LOCAL_STEPS * LOCAL_ROWS


def _meets(run: Outcome, bits: float, averaged: Averaged) -> float:
    """Return the local steps of a round at which both send the same, adapters delivered once."""
    return averaged.bits / (bits / run.rows * LOCAL_ROWS)


def _federated(settings: Settings, name: str, seed: int) -> Averaged:
    """Train federated LoRA on the same rows, as often."""
    own = settings.bits_rows / _CLIENTS
    rounds = round(settings.bits_epochs * own / LOCAL_STEPS / LOCAL_ROWS)
    more = (
        f"train.batch_size={LOCAL_ROWS}",
        f"train.steps={LOCAL_STEPS}",
        f"train.rounds={max(1, rounds)}",
    )
    scenario = passes_of(settings, name, seed, more)
    adapter = Federation(scenario, Record(), workers=1).server.engine.adapter()
    return FederatedLora(scenario, adapter).average()
