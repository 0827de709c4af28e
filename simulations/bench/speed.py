"""Tokens a second of the split run, beside unsplit PEFT and a server that works in turn."""

from __future__ import annotations

import tempfile
from pathlib import Path

from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.federation import over_tls
from simulations.bench.in_turn import InTurn
from simulations.bench.unsplit import Unsplit
from simulations.bench.workload import Load, Workload
from simulations.in_process import connect

TASKS = {"gpt2": "causal_lm", "minilm": "classification"}
UNSPLIT, IN_TURN = "unsplit", "in_turn"


def in_process(load: Load, settings: Settings, tick: Tick, *, in_turn: bool) -> Contest:
    """Time the run over in-process links, unsplit training, and on request a server in turn."""
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        contest = Contest(settings.warm_up, settings.pairs, tick)
        server = connect(workload.scenario, contest)
        contest.baselines = {UNSPLIT: Unsplit(workload, server.engine)}
        if in_turn:
            contest.baselines[IN_TURN] = InTurn(connect(workload.scenario, contest))
        server.training.run()
        server.end()
    return contest


def over_stream(load: Load, settings: Settings, tick: Tick, *, hosts: int = 0) -> Contest:
    """Time the run over the TLS stream with client processes, and unsplit training."""
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        contest = Contest(settings.warm_up, settings.pairs, tick)
        with over_tls(workload, contest, hosts) as (server, _):
            contest.baselines = {UNSPLIT: Unsplit(workload, server.engine)}
            server.training.run()
    return contest


def speed_in_process(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Measure over in-process links, with all rows and with one row of each client."""
    figures = []
    for rows in (context.settings.speed_rows, 1):
        load = _load(context, model, rows)
        contest = in_process(load, context.settings, tick, in_turn=True)
        target = 0.95 if rows > 1 else None
        figures += _figures(f"rows_{rows}", load, contest, target)
    return figures


def speed_over_tls(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Measure over the TLS stream, each client in a process of its own."""
    rows = context.settings.speed_rows
    load = _load(context, model, rows)
    contest = over_stream(load, context.settings, tick)
    return _figures(f"rows_{rows}", load, contest, 0.90)


def contest_steps(settings: Settings) -> int:
    """Return the steps of a contest; the last fetches no next batch, so it is not counted."""
    return settings.warm_up + settings.pairs + 1


def _load(context: Context, model: str, rows: int) -> Load:
    settings = context.settings
    path = context.model(model)
    return Load(path, TASKS[model], settings.speed_clients, rows, settings.speed_length)


def _figures(name: str, load: Load, contest: Contest, target: float | None) -> list[Figure]:
    """Return what a contest says, under names that begin with ``name``."""
    ratio = contest.speed_ratio(SPLIT, UNSPLIT)
    quartiles = contest.ratio_quartiles(SPLIT, UNSPLIT)
    figures = [
        Figure(f"{name}.split", load.tokens / contest.median_seconds(SPLIT), "tokens/s"),
        Figure(f"{name}.unsplit", load.tokens / contest.median_seconds(UNSPLIT), "tokens/s"),
        Figure(f"{name}.split_to_unsplit", ratio, "ratio", target, None, *quartiles),
        Figure(f"{name}.loss_difference", contest.loss_difference, "relative", at_most=1e-3),
    ]
    if IN_TURN in contest.seconds[0]:
        figures += [
            Figure(f"{name}.in_turn", load.tokens / contest.median_seconds(IN_TURN), "tokens/s"),
            Figure(f"{name}.split_to_in_turn", contest.speed_ratio(SPLIT, IN_TURN), "ratio"),
            Figure(f"{name}.in_turn_to_unsplit", contest.speed_ratio(IN_TURN, UNSPLIT), "ratio"),
        ]
    return figures
