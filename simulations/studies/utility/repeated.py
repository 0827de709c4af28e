"""What it is worth that a noised activation is repeated: accuracy over the epsilon of activations.

    python -m simulations.studies.utility.repeated --out FOLDER --set train.rounds=3

Gradients are exact, so that only activations cost. ``once`` draws a sample's noise when it is first
sent and repeats it (``link.reuse``); ``anew`` draws it each time, with the more noise that makes
all E times together cost the same: by the square root of E, the times that a client sends a record
at most. Both spend the same epsilon on each record. The noise comes from the operating system, so a
repetition differs within the intervals. FOLDER has a line for each run, and the curve as
``repeated.png``; what is there is not run again, so that ``--seeds 0`` draws it alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.optimize import brentq

from fedlora.config import Scenario, with_overrides
from fedlora.privacy.accounting import epsilon_of, planned_uploads
from fedlora.privacy.accounting.rdp import rho
from fedlora.report.figure import COLOURS, MUTED, label, legend, panels, save
from fedlora.scenarios import find_scenario
from simulations.in_process import Federation, Record
from simulations.noisy_activations import NoisyActivations
from simulations.options import require_held_out
from simulations.refusals import one_sentence
from simulations.studies.kit import Results, run_missing

WAYS = ("once", "anew")
_DELTA = 1e-5
_PLAIN = (
    "privacy.epsilon=none",
    "channel.deliver_every=0",
    "ranks.strategy=uniform",
    "evaluate.baseline=false",
    "link.activation=fp32",
    "compute.threads=1",
)


class AnewActivations(NoisyActivations):
    """As its base, but with noise of its own each time that a sample goes up."""

    def _noised(
        self, packed: torch.Tensor, lengths: Sequence[int], samples: Sequence[int]
    ) -> torch.Tensor:
        self._drawn.clear()
        return super()._noised(packed, lengths, samples)


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes
    ----------
    way
        ``once`` or ``anew``; ``exact`` without noise.
    epsilon
        Of the activations of each record, at delta 1e-5.
    seed
        Of data, partition and batches.
    """

    way: str
    epsilon: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells trials apart."""
        return self.way, self.epsilon, self.seed


def sigma_of(epsilon: float, uploads: int) -> float:
    """Return the noise of each upload, at delta 1e-5.

    As ``fedlora.privacy.accounting.calibrate_sigma`` does, which refuses an epsilon that promises
    nothing: whole activations are not learnt from below it.
    """
    budget = brentq(lambda b: epsilon_of(b, _DELTA) - epsilon, 1e-9, 2 * epsilon, rtol=1e-12)
    return math.sqrt(uploads * rho(1.0) / budget)


def run_trial(trial: Trial, base: Scenario) -> dict[str, Any]:
    """Run a trial in this process; return its row."""
    began, record = time.perf_counter(), Record()
    link = replace(base.link, reuse=trial.way != "anew")
    federation = Federation(replace(base, seed=trial.seed, link=link), record, workers=1)
    train, sent = base.train, [1] * len(federation.clients)
    if trial.way == "anew":
        rows = [len(client.train) for client in federation.clients]
        sent = [planned_uploads(train.total_steps, train.batch_size, own) for own in rows]
    if trial.way != "exact":
        release = AnewActivations if trial.way == "anew" else NoisyActivations
        for client, times in zip(federation.clients, sent, strict=True):
            sigma = sigma_of(trial.epsilon, times)
            client.use(release(sigma, base.privacy.activation_clip_norm))
    federation.server.training.run()
    federation.server.end()
    metric = record.rounds[-1]["metric"]
    return {
        "way": trial.way,
        "epsilon": trial.epsilon,
        "seed": trial.seed,
        "sent": max(sent),
        "metric": round(float(metric or 0.0), 6),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(
    scenario: Annotated[str, typer.Argument(help="Scenario of a classifier.")] = "quickstart",
    out: Annotated[Path, typer.Option(help="Folder; what is there is taken up.")] = Path(
        "repeated"
    ),
    epsilon: Annotated[list[float] | None, typer.Option(help="Of activations.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Runs each; 0: draw what is there.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Keys of the scenario; FOLDER is for one set.")
    ] = None,
) -> None:
    """Train with activations that are noised once and repeated, and with noise drawn anew."""
    base = with_overrides(find_scenario(scenario), [*_PLAIN, *(overrides or ())])
    require_held_out(base, "both ways are compared by the held-out metric")
    base = replace(base, evaluate=replace(base.evaluate, every=base.train.rounds))
    every = [Trial("exact", math.inf, seed) for seed in range(seeds)]
    for own in epsilon or (100.0, 1000.0, 10000.0):
        every += [Trial(way, own, seed) for seed in range(seeds) for way in WAYS]
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "repeated.jsonl", _key, "this study")
    run_missing(results, every, run_trial, lambda _: (base,), workers=workers)
    table = Table(title=f"{base.name}: accuracy over the epsilon of activations")
    for column in ("epsilon", "way", "times sent", "runs", "mean", "std"):
        table.add_column(column, justify="right")
    rows = list(results.records.values())
    for own, way in sorted({(row["epsilon"] or math.inf, row["way"]) for row in rows}):
        same = [r for r in rows if (r["epsilon"] or math.inf, r["way"]) == (own, way)]
        metrics = [row["metric"] for row in same]
        spread = f"{stdev(metrics):.3f}" if len(metrics) > 1 else ""
        shown = ("" if math.isinf(own) else f"{own:g}", way, str(same[0]["sent"]))
        table.add_row(*shown, str(len(same)), f"{mean(metrics):.3f}", spread)
    Console().print(table)
    if rows:
        draw(rows, out / "repeated.png", base.name)


def draw(rows: Sequence[Mapping[str, Any]], path: Path, name: str) -> Path:
    """Draw the means of both ways over epsilon, all runs as dots, and that without noise."""
    figure, (ax,) = panels(1)
    for colour, way in zip(COLOURS, WAYS, strict=False):
        own = [row for row in rows if row["way"] == way]
        epsilons = sorted({row["epsilon"] for row in own})
        means = [mean(row["metric"] for row in own if row["epsilon"] == e) for e in epsilons]
        told = "noised once and repeated" if way == "once" else "noised anew each time"
        ax.plot(epsilons, means, "-", color=colour, label=told)
        ax.plot([r["epsilon"] for r in own], [r["metric"] for r in own], ".", color=colour)
    clean = [row["metric"] for row in rows if row["way"] == "exact"]
    if clean:
        ax.axhline(mean(clean), color=MUTED, linestyle="--", linewidth=1.2, label="no noise")
    ax.set_xscale("log")
    x, y = "epsilon of each record's activations", "accuracy, held out"
    label(ax, title=f"{name}: what it is worth to repeat a noised activation", x=x, y=y)
    legend(ax, columns=3)
    return save(figure, path)


def _key(row: Mapping[str, Any]) -> tuple[str, float, int]:
    return row["way"], math.inf if row["epsilon"] is None else float(row["epsilon"]), row["seed"]


if __name__ == "__main__":
    with one_sentence():
        typer.run(main)
