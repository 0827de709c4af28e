"""What frozen blocks in fewer bits save and cost: bytes, steps beside fp32, and the loss."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from fedlora.config import with_overrides
from fedlora.scenarios import find_scenario
from fedlora.server.compute.engine import SplitEngine
from fedlora.split.few_bits import LIBRARIES, FewBitLinear
from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Tick
from simulations.bench.figures import Figure
from simulations.bench.robust import OtherRun
from simulations.bench.settings import Settings
from simulations.bench.speed import contest_steps
from simulations.bench.workload import Load, Workload
from simulations.in_process import Record, connect, run

BYTES_AT_MOST: Mapping[str, float] = {"bf16": 0.52, "int8": 0.30, "nf4": 0.18}
LOSS_AT_MOST: Mapping[str, float] = {"bf16": 1.02, "int8": 1.02, "nf4": 1.05}
BF16_SPEED_AT_LEAST = 0.8


def forms() -> list[str]:
    """Return the forms whose libraries are installed."""
    return [form for form in BYTES_AT_MOST if find_spec(LIBRARIES.get(form, "torch"))]


def kept_bytes(engine: SplitEngine) -> int:
    """Return the bytes of the server's blocks, norms and positions, scales included, LoRA apart."""
    few = [m for m in engine.blocks.modules() if isinstance(m, FewBitLinear)]
    counted = {id(p) for layer in few for p in layer.parameters(recurse=False)}
    factors = {id(f) for projection in engine.projections for f in (projection.A, projection.B)}
    others: list[nn.Parameter] = [
        p for p in engine.blocks.parameters() if id(p) not in counted | factors
    ]
    return sum(layer.kept_bytes for layer in few) + sum(p.nbytes for p in others)


def few_bits(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare steps over blocks in each form with those over fp32, and what the blocks take."""
    settings = context.settings
    load = Load(
        context.model(model),
        "classification",
        settings.robust_clients,
        settings.scale_rows,
        settings.scale_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(load, contest_steps(settings), Path(folder))
        contest = Contest(settings.warm_up, settings.pairs, tick)
        fp32 = with_overrides(workload.scenario, ["compute.threads=1"])
        kept = {form: with_overrides(fp32, [f"model.weights={form}"]) for form in forms()}
        contest.others_rows = set(kept)  # over other matrices, whose loss is another
        server = connect(fp32, contest)
        contest.baselines = {form: OtherRun(scenario) for form, scenario in kept.items()}
        whole = kept_bytes(server.engine)
        sizes = {form: kept_bytes(connect(own, Record()).engine) for form, own in kept.items()}
        server.training.run()
        server.end()
    figures = []
    for form in kept:
        share, speed = sizes[form] / whole, contest.speed_ratio(form, SPLIT)
        least = BF16_SPEED_AT_LEAST if form == "bf16" else None
        spread = contest.ratio_quartiles(form, SPLIT)
        figures += [
            Figure(f"{form}.bytes_to_fp32", share, "ratio", at_most=BYTES_AT_MOST[form]),
            Figure(f"{form}.speed_to_fp32", speed, "ratio", least, None, *spread),
        ]
    return figures


def ticks(settings: Settings) -> int:
    """Return the steps of the contest."""
    return contest_steps(settings)


def loss(context: Context, name: str, tick: Tick) -> list[Figure]:
    """Train a scenario for some steps over blocks in each form, and over fp32."""
    rounds = [f"train.steps={context.settings.weights_steps}", "train.rounds=1"]
    base = with_overrides(find_scenario(name), [*rounds, "evaluate.baseline=false"])
    losses = {}
    for form in ("fp32", *forms()):
        run(with_overrides(base, [f"model.weights={form}"]), record := Record())
        found = record.rounds[-1]["loss"]
        assert found is not None
        losses[form] = found
        tick()
    return [
        Figure(
            f"{form}.loss_to_fp32",
            losses[form] / losses["fp32"],
            "ratio",
            at_most=LOSS_AT_MOST[form],
        )
        for form in forms()
    ]


def loss_ticks(settings: Settings) -> int:
    """Return how many runs there are."""
    del settings
    return 1 + len(forms())
