"""A run begins from the update that PEFT makes of the adapter in ``lora.start``."""

from __future__ import annotations

import torch
from peft import PeftModel

from simulations.fuzz.trial import Trial
from simulations.fuzz.whole import Whole


def start(trial: Trial) -> str | None:
    """Hold the update of every projection to that of ``PeftModel.from_pretrained``."""
    scenario = trial.scenario
    if not scenario.lora.start:
        return None
    whole = Whole(scenario)
    model = PeftModel.from_pretrained(whole.base, scenario.lora.start)
    scale = scenario.lora.alpha / scenario.lora.r_max
    for projection in trial.federation.server.engine.projections:
        layer = model.base_model.model.get_submodule(whole.prefix + projection.name)
        expected = layer.get_delta_weight("default")
        if getattr(layer, "fan_in_fan_out", False):
            expected = expected.T
        A, B = (trial.initial[f"{projection.name}.{which}"] for which in "AB")
        off = float((scale * (B.float() @ A.float()) - expected).abs().max())
        # factors are kept in model.dtype, each of whose numbers has 8 bits in bf16
        rounding = 2.0**-6 * float(expected.abs().max()) if A.dtype == torch.bfloat16 else 1e-5
        if off > rounding:
            return f"the start of {projection.name} is off by {off:.2g} from PEFT's"
    return ""
