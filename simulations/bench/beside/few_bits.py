"""What frozen blocks in fewer bits save and cost: bytes, steps beside fp32, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from torch import nn

from fedlora.config import Scenario, with_overrides
from fedlora.scenarios import find_scenario
from fedlora.server.compute import SplitEngine
from fedlora.split import LIBRARIES, Checkpoint, FewBitLinear, model_folder
from simulations.bench.beside.runs import beside, small_load
from simulations.bench.contest import SPLIT
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.in_process import Record, run

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
    ways = {form: [f"model.weights={form}"] for form in forms()}
    load = small_load(context, model)
    contest = beside(context.settings, load, tick, [], ways, other_losses=set(ways))
    plain = with_overrides(Scenario(), [f"model.path={load.model}"])
    checkpoint = Checkpoint(model_folder(load.model))
    whole = kept_bytes(SplitEngine(checkpoint, plain))
    figures = []
    for form, way in ways.items():
        share = kept_bytes(SplitEngine(checkpoint, with_overrides(plain, way))) / whole
        speed, spread = contest.speed_ratio(form, SPLIT), contest.ratio_quartiles(form, SPLIT)
        least = BF16_SPEED_AT_LEAST if form == "bf16" else None
        figures += [
            Figure(f"{form}.bytes_to_fp32", share, "ratio", at_most=BYTES_AT_MOST[form]),
            Figure(f"{form}.speed_to_fp32", speed, "ratio", least, None, *spread),
        ]
    return figures


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
