"""The air ledger's bits are those that shapes come to."""

from __future__ import annotations

import math
from collections import Counter

from fedlora.batch_order import BatchStream
from fedlora.config import PAYLOADS, LinkConfig, Payload, Scenario
from fedlora.tasks import IGNORED, Sample, head_trains
from simulations.fuzz.trial import Trial


def bits(trial: Trial) -> str | None:
    """Hold every kind of payload to what batches, widths, codecs and ranks come to."""
    if trial.scenario.privacy.enabled or not trial.everybody:
        return None
    totals = trial.federation.server.air.ledger.totals()["bits"]
    for key, expected in (_training(trial) | _adapters(trial)).items():
        way, kind = key
        booked, bound = totals[way][kind], " at most" * (kind in _coded(trial.scenario))
        if booked > expected or (booked < expected and not bound):
            return f"{booked} bits of {kind} are booked {way}, shapes give{bound} {expected}"
    told = sum(own["bits"]["up"]["activation"] for own in trial.run.rounds)
    if told != totals["up"]["activation"]:
        return f"rounds tell {told} bits of activations, the ledger {totals['up']['activation']}"
    return ""


def _coded(scenario: Scenario) -> set[str]:
    """Return the kinds of payload whose size depends on what is in them."""
    names = {payload: scenario.link.codec(payload)["name"] for payload in PAYLOADS}
    kinds: set[str] = {p for p, name in names.items() if name in ("rotated", "distinct", "entropy")}
    # the gradient's codec carries dL/de, which is booked with the representation
    kinds |= {"representation"} if "gradient" in kinds else set()
    return kinds | ({"gradient"} if scenario.link.keep < 1 else set())


def _size(link: LinkConfig, payload: Payload, rows: int, width: int) -> int:
    """Return the bits of rows under a payload's codec, at most where it codes for length."""
    chosen = link.codec(payload)
    if chosen["name"] == "rotated":
        # Rows are filled up to whole groups of 16 numbers at least, with a scale each.
        numbers = rows * max(width, 1 << (width - 1).bit_length()) + 256
        return int(numbers * chosen.get("bits", 6) + 16 * (numbers // 16 + rows) + 8 + 32 * rows)
    if chosen["name"] == "entropy":  # no code of deflate's is longer than 15 bits; two at most
        return 15 * rows * max(width, 1 << (width - 1).bit_length()) + rows + 2 * (15 * 256 + 4096)
    bits = {
        "fp32": 32 * width,
        "bf16": 16 * width,
        "int8": 8 * width + 32,
        "distinct": 32 * width + 32,
    }[chosen["name"]]
    return rows * bits


def _training(trial: Trial) -> dict[tuple[str, str], int]:
    """Return what training takes, by direction and kind."""
    scenario, federation = trial.scenario, trial.federation
    found: Counter[tuple[str, str]] = Counter(
        {("up", "activation"): 0, ("up", "gradient"): 0, ("down", "representation"): 0}
    )
    head = 0
    if head_trains(scenario):
        head = 32 * sum(p.numel() for p in federation.clients[0].head.module.parameters())
    for number, client in enumerate(federation.clients):
        found += _exchanges(trial, number, head)
        if head and scenario.head.share != "personal":
            ends = scenario.train.rounds * (scenario.head.share == "round")
            found["up", "head"] += head * (1 + ends)
            found["down", "head"] += head * scenario.train.rounds
        told = (own["clients"].get(client.name, {}) for own in trial.run.rounds)
        found["up", "control"] += 32 * sum(len(own.get("statistics", ())) for own in told)
    return dict(found)


def _exchanges(trial: Trial, number: int, head: int) -> Counter[tuple[str, str]]:
    """Return what a client's steps take."""
    scenario, engine = trial.scenario, trial.federation.server.engine
    train, link = scenario.train, scenario.link
    up = engine.geometry.activation_width
    vocabulary = 0 if engine.vocabulary is None else len(engine.vocabulary.weight)
    samples = trial.samples(trial.federation.clients[number])
    stream = BatchStream(samples, train.batch_size, scenario.seed, number)
    found: Counter[tuple[str, str]] = Counter()
    reuse, seen = link.reuse and not train.embedding, set[int]()
    down = link.r_cut or engine.geometry.representation_width
    remembers, held = reuse and _remembers(link, down), set[int]()
    exchanges = train.total_steps * train.accumulate
    for _ in range(exchanges):
        chosen = stream.indices()
        lengths = [len(samples[i].ids) for i in chosen]
        sent = [len(samples[i].ids) for i in chosen if i not in seen]
        seen.update(chosen if reuse else ())
        tokens, rows = sum(lengths), len(lengths) if engine.pool is not None else sum(lengths)
        if engine.geometry.targets_only(scenario):
            rows = sum(_learnt(samples[i]) for i in chosen)
            found["up", "control"] += 8 * math.ceil(sum(sent) / 8)
        shared = head * (scenario.head.share == "step" and not link.r_cut)
        if link.sends_tokens:
            bits = math.ceil(math.log2(vocabulary))
            found["up", "activation"] += 8 * math.ceil(sum(sent) * bits / 8)
        else:
            found["up", "activation"] += _size(link, "activation", sum(sent), up)
        found["up", "control"] += 32 * len(sent) + 72 * len(chosen) * reuse
        found["up", "control"] += 32 * len(chosen) * (not held.isdisjoint(chosen))
        held.update(chosen if remembers else ())
        found["up", "control"] += 8 * math.ceil(rows / 8) * (link.keep < 1)
        found["up", "gradient"] += _size(link, "gradient", rows, down)
        found["up", "head"] += shared
        found["down", "representation"] += _size(link, "representation", rows, down)
        found["down", "head"] += shared
        if train.embedding:
            found["down", "representation"] += _size(link, "gradient", tokens, up)
    return found


def _remembers(link: LinkConfig, width: int) -> bool:
    """Tell whether both ends keep what was sent of rows of this width."""
    narrow = width < 64 and width % 16 > 0
    return link.representation == "entropy" and link.residual_mib > 0 and not narrow


def _learnt(sample: Sample) -> int:
    """Return how many tokens of a language model's sample are learnt."""
    assert isinstance(sample.target, tuple)
    return sum(token != IGNORED for token in sample.target)


def _adapters(trial: Trial) -> dict[tuple[str, str], int]:
    """Return what the delivered adapters take; nothing is said where one came too late."""
    scenario: Scenario = trial.scenario
    projections = trial.federation.server.engine.projections
    total = 0
    for record in trial.run.rounds:
        for client in record["clients"].values():
            if client.get("delivered") is False:
                return {}
            if client.get("delivered"):
                pairs = zip(client["ranks"], projections, strict=True)
                total += sum(rank * (p.d_in + p.d_out) for rank, p in pairs)
    return {("down", "adapter"): scenario.channel.bits_per_parameter * total}
