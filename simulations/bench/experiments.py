"""All experiments by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from simulations.bench import edge, generation, scale, text
from simulations.bench.beside import few_bits, overlap, reuse, robust, runs
from simulations.bench.bits import measure as bits
from simulations.bench.context import MALLOC_NO_MMAP, Context, Figure, Settings, Tick
from simulations.bench.speed import contest_steps, speed_in_process, speed_over_tls
from simulations.bench.stream.cost import exchange, idle_streams

# Large blocks then come from the heap and stay mapped, instead of faulting in anew at every use.
NO_MMAP_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True)
class Experiment:
    """One measurement, which runs in a process of its own.

    Attributes
    ----------
    kind
        ``speed``, ``text``, ``bits``, ``edge``, ``scale``, ``overlap``, ``robust``, ``reuse``,
        ``weights``, ``generate`` or ``stream``.
    model
        Name of the model, or of what is measured without one.
    measure
        Returns the figures, under names that begin below ``name``.
    ticks
        How often it reports progress.
    setting
        Link and allocator, where there is a choice.
    no_mmap
        Whether malloc's mmap is switched off in all of its processes.
    """

    kind: str
    model: str
    measure: Callable[[Context, str, Tick], list[Figure]]
    ticks: Callable[[Settings], int]
    setting: str = ""
    no_mmap: bool = False

    @property
    def name(self) -> str:
        """Dotted name."""
        return ".".join(part for part in (self.kind, self.model, self.setting) if part)


def experiments(settings: Settings) -> list[Experiment]:
    """Return all experiments in the order in which they run."""
    found = []
    for model in settings.speed_models:
        for malloc in settings.mallocs:
            without = malloc == MALLOC_NO_MMAP
            found += [
                Experiment(
                    "speed", model, speed_in_process, _two_contests, f"in_process.{malloc}", without
                ),
                Experiment("speed", model, speed_over_tls, contest_steps, f"tls.{malloc}", without),
            ]
    found += _on_texts(settings)
    for name in settings.bits_scenarios:
        found.append(Experiment("bits", name, bits.bits_at_the_cut, partial(bits.ticks, name=name)))
    found.append(Experiment("edge", "gpt2", edge.edge_client, lambda _: 2 * edge.STEPS))
    for model in settings.scale_models:
        found.append(Experiment("scale", model, scale.many_clients, scale.ticks))
    for model in settings.overlap_models:
        found.append(Experiment("overlap", model, overlap.overlapped, overlap.ticks))
    for model in settings.robust_models:
        found.append(Experiment("robust", model, robust.robust_averages, runs.ticks))
        found.append(Experiment("reuse", model, reuse.reused_blocks, runs.ticks))
    for model in settings.weights_models:
        found.append(Experiment("weights", model, few_bits.few_bits, runs.ticks))
    for name in settings.weights_scenarios:
        found.append(Experiment("weights", name, few_bits.loss, few_bits.loss_ticks))
    for model in settings.generate_models:
        found.append(
            Experiment(
                *("generate", model, generation.generate_in_process, generation.ticks),
                setting="in_process.default_malloc",
            )
        )
        found.append(
            Experiment(
                *("generate", model, generation.generate_over_tls, generation.over_tls_ticks),
                setting="over_tls",
            )
        )
    for model in settings.agreement_models:
        found.append(
            Experiment(
                *("generate", model, generation.agreement, generation.agreement_ticks),
                setting="few_bits",
            )
        )
    for model in settings.leave_models:
        found.append(
            Experiment(
                *("generate", model, generation.leave_early, generation.leave_ticks),
                setting="leave_early",
            )
        )
    for model in settings.slow_link_models:
        found.append(
            Experiment(
                *("generate", model, generation.slow_link, generation.slow_link_ticks),
                setting="slow_link",
            )
        )
    found.append(Experiment("stream", "exchange", exchange, lambda _: 2))
    found.append(Experiment("stream", "idle", idle_streams, lambda _: 1))
    return found


def _on_texts(settings: Settings) -> list[Experiment]:
    found = []
    for name in settings.text_scenarios:
        for malloc in settings.mallocs:
            without = malloc == MALLOC_NO_MMAP
            for link, measure in (
                ("in_process", text.text_in_process),
                ("tls", text.text_over_tls),
            ):
                setting = f"{link}.{malloc}"
                found.append(Experiment("text", name, measure, text.ticks, setting, without))
    return found


def _two_contests(settings: Settings) -> int:
    return 2 * contest_steps(settings)
