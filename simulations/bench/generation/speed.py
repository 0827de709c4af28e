"""Tokens a second of generation: a batch of clients beside one after the other, and beside PEFT."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from clients.generation import DraftPace, Sampler, Sampling, Writer
from fedlora.generation.engine import GenerationEngine, NewTokens
from fedlora.generation.pages import RowPages
from fedlora.generation.server import GenerationServer
from fedlora.lora.export import Adapter
from fedlora.split import load_whole
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.generation.bed import R_MAX, Bed
from simulations.bench.generation.drafts import texts_are_here, tokens_an_exchange

_GREEDY = Sampling()
END_TO_END = {"gpt2": 0.8 * 2.5, "smollm2": 0.8 * 3.2}
"""What is to be reached with all heads on the same cores, of what the arithmetic allows."""


@dataclass
class Timed:
    """Seconds of each way, and the gaps between one client's tokens, over all pairs.

    Attributes
    ----------
    clock
        Tells the processor time of all that takes part, in seconds.
    seconds, processor
        By the clock and of the processor, by name.
    first_s, between_s
        What each text's first token took, and what was between its tokens.
    """

    clock: Callable[[], float] = time.process_time
    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Time a piece of work."""
        used, begun = self.clock(), time.perf_counter()
        work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        self.processor.setdefault(name, []).append(self.clock() - used)

    def ratio(self, name: str, over: str) -> list[float]:
        """Return by what ``over`` takes longer, pair by pair."""
        return _ratios(self.seconds, name, over)

    def processor_ratio(self, name: str, over: str) -> list[float]:
        """Return by what ``over`` takes more of the processor, pair by pair."""
        return _ratios(self.processor, name, over)

    def forget_after(self, marks: Mapping[str, int], first: int, between: int) -> None:
        """Forget all but the first so many of each."""
        for kept in (self.seconds, self.processor):
            for name, found in kept.items():
                del found[marks.get(name, 0) :]
        del self.first_s[first:], self.between_s[between:]


def _ratios(kept: Mapping[str, Sequence[float]], name: str, over: str) -> list[float]:
    pairs = zip(kept[over], kept[name], strict=True)
    return [slow / fast for slow, fast in pairs]


class SpeedBed(Bed):
    """A server with a random adapter, prompts, and clients of ranks 1 to 8."""

    def __init__(self, path: str, settings: Settings) -> None:
        super().__init__(path)
        self.settings = settings
        self.whole: Any = load_whole(self.folder, pooled=False).eval()
        self.adapter = _adapter(self.engine, self.whole, str(self.folder))
        self.engine.load(self.adapter)
        width, clients = len(self.engine.projections), settings.generate_clients
        self.ranks = {str(n): [1 + n % R_MAX] * width for n in range(clients)}
        self.server = GenerationServer(
            self.engine, self.scenario, self.identity, ranks=self.ranks, default=self.full_ranks
        )
        vocabulary = self.checkpoint.size("vocab_size")
        generator = torch.Generator().manual_seed(1)
        shape = (clients, settings.generate_prompt)
        self.prompts: list[list[int]] = torch.randint(
            3, vocabulary, shape, generator=generator
        ).tolist()

    def writer(self, client: str) -> Writer:
        """Return a client that writes without drafts."""
        row = self.row(self.server.carry, client)
        return Writer(self.text_ends(), row, (), DraftPace(0))

    def embedded(self, ids: Sequence[int]) -> torch.Tensor:
        """Return embeddings of tokens."""
        return self.text_ends().embed(ids, 0)


def generate_in_process(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Measure the server alone, all clients end to end, and one client beside PEFT."""
    bed = SpeedBed(context.model(model), context.settings)
    timed = Timed()
    try:
        with torch.no_grad():
            _server_alone(bed, timed, tick)
            _end_to_end(bed, timed, tick)
            adapter = context.folder / "adapter"
            bed.adapter.save(adapter)
            agree = beside_peft(bed, timed, adapter, tick, lambda: bed.writer("as it is"))
    finally:
        bed.server.end()
    figures = [*_figures(bed, timed, model), Figure("single_tokens_as_hf", agree, "ratio")]
    if not context.settings.tiny and texts_are_here(model):
        figures += tokens_an_exchange(model)
    return figures


def ticks(settings: Settings) -> int:
    """Return how often progress is reported."""
    return 3 * (settings.warm_up + settings.pairs)


def _pairs(bed: SpeedBed, timed: Timed, tick: Tick) -> Iterator[None]:
    """Go on for all pairs; what the first ones took is forgotten."""
    before = {name: len(found) for name, found in timed.seconds.items()}
    marks = len(timed.first_s), len(timed.between_s)
    for number in range(bed.settings.warm_up + bed.settings.pairs):
        yield
        if number < bed.settings.warm_up:
            timed.forget_after(before, *marks)
        tick()


def _server_alone(bed: SpeedBed, timed: Timed, tick: Tick) -> None:
    """Feed embeddings in, and compute no head."""
    engine, steps = bed.engine, bed.settings.generate_tokens
    mixed, full = list(bed.ranks.values()), [bed.full_ranks] * len(bed.ranks)
    pages = [RowPages() for _ in mixed]
    for row, prompt, ranks in zip(pages, bed.prompts, mixed, strict=True):
        engine.forward([NewTokens(row, bed.embedded(prompt), ranks)])
    one = [bed.embedded(prompt[:1]) for prompt in bed.prompts]

    def together(ranks: Sequence[Sequence[int]]) -> None:
        for _ in range(steps):
            engine.forward([NewTokens(*row) for row in zip(pages, one, ranks, strict=True)])
        _back()

    def in_turn() -> None:
        for row in zip(pages, one, mixed, strict=True):
            for _ in range(steps):
                engine.forward([NewTokens(*row)])
        _back()

    def _back() -> None:
        for row, prompt in zip(pages, bed.prompts, strict=True):
            row.crop(len(prompt))

    for _ in _pairs(bed, timed, tick):
        timed.run("server_batched", lambda: together(mixed))
        timed.run("server_equal", lambda: together(full))
        timed.run("server_in_turn", in_turn)


def _end_to_end(bed: SpeedBed, timed: Timed, tick: Tick) -> None:
    """Let all clients write, with frames, heads and sampling, on the same cores."""

    def write(client: str, note: bool) -> None:
        writer, marks = bed.writer(client), [time.perf_counter()]
        prompt = bed.prompts[int(client)]
        for _ in writer.tokens(prompt, Sampler(_GREEDY), bed.settings.generate_text):
            marks.append(time.perf_counter())
        writer.close()
        if note:
            gaps = [after - before for before, after in pairwise(marks)]
            timed.first_s.append(gaps[0])
            timed.between_s.extend(gaps[1:])

    def together() -> None:
        threads = [threading.Thread(target=write, args=(client, True)) for client in bed.ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def in_turn() -> None:
        for client in bed.ranks:
            write(client, False)

    for _ in _pairs(bed, timed, tick):
        timed.run("batched", together)
        timed.run("in_turn", in_turn)


def beside_peft(
    bed: SpeedBed, timed: Timed, adapter: Path, tick: Tick, new_writer: Callable[[], Writer]
) -> float:
    """Let one client and PEFT's model write alike; return the share of equal tokens.

    Parameters
    ----------
    bed
        The model, whose whole gets the adapter.
    timed
        Is given the seconds of ``single`` and ``hf``.
    adapter
        Folder of the adapter.
    tick
        Is called after each pair.
    new_writer
        Gives the client for each text.
    """
    from peft import PeftModel

    unsplit = PeftModel.from_pretrained(bed.whole, str(adapter)).eval()
    prompt, most, found = bed.prompts[0], bed.settings.generate_tokens, [list[int]()] * 2

    def ours() -> None:
        writer = new_writer()
        found[0] = list(writer.tokens(prompt, Sampler(_GREEDY), most))
        writer.close()

    def theirs() -> None:
        ids = torch.tensor([prompt])
        out = unsplit.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found[1] = out[0, len(prompt) :].tolist()

    for _ in _pairs(bed, timed, tick):
        timed.run("single", ours)
        timed.run("hf", theirs)
    return float(sum(a == b for a, b in zip(*found, strict=True)) / most)


def _figures(bed: SpeedBed, timed: Timed, model: str) -> list[Figure]:
    ratios = (
        (
            *("server_batched_to_in_turn", "server_batched", "server_in_turn"),
            4.0 if model in END_TO_END else None,
        ),
        ("mixed_to_equal_ranks", "server_batched", "server_equal", 0.9),
        ("batched_to_in_turn", "batched", "in_turn", END_TO_END.get(model)),
        ("single_to_hf", "single", "hf", 0.95 if model in END_TO_END else None),
    )
    figures = []
    for name, fast, slow, target in ratios:
        pairs = timed.ratio(fast, slow)
        low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
        figures.append(Figure(name, middle, "ratio", target, None, low, high))
        used = statistics.median(timed.processor_ratio(fast, slow))
        figures.append(Figure(f"{name}_processor_time", used, "ratio"))
    settings = bed.settings
    written = {"batched": len(bed.ranks) * settings.generate_text}
    written |= dict.fromkeys(("single", "hf"), settings.generate_tokens)
    for name, tokens in written.items():
        speed = tokens / statistics.median(timed.seconds[name])
        figures.append(Figure(name, speed, "tokens/s"))
    for name, found in (("ttft", timed.first_s), ("between_tokens", timed.between_s)):
        late = statistics.quantiles(found, n=20, method="inclusive")[-1]
        figures.append(Figure(f"{name}_ms", 1e3 * statistics.median(found), "ms"))
        figures.append(Figure(f"{name}_p95_ms", 1e3 * late, "ms"))
    return figures


def _adapter(engine: GenerationEngine, whole: Any, folder: str) -> Adapter:
    """Return a random adapter, named as the whole model has its modules."""
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(2)
    prefix = whole.base_model_prefix + "."
    factors = {
        prefix + p.name: (
            torch.randn(p.A.shape, generator=generator) / p.d_in**0.5,
            torch.randn(p.B.shape, generator=generator) / 100,
        )
        for p in engine.projections
    }
    transposed = any(isinstance(module, Conv1D) for module in whole.modules())
    return Adapter(factors, 16.0, folder, "CAUSAL_LM", fan_in_fan_out=transposed)
