"""Targets are ends of module names; one that matches nothing is refused."""

from __future__ import annotations

import pytest
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from transformers import AutoModel

from fedlora.config import LoraConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.lora.targets import choose_targets
from fedlora.server.compute import SplitEngine
from fedlora.split import Checkpoint

LINEAR = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_attn"]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["all-linear"], LINEAR),
        (["c_attn"], [LINEAR[0], LINEAR[3]]),
        (["mlp.c_proj", "c_attn"], [LINEAR[0], LINEAR[2], LINEAR[3]]),
        (["c_proj", "attn.c_proj"], [LINEAR[1], LINEAR[2]]),
        (["h.1.attn.c_attn"], [LINEAR[3]]),
    ],
)
def test_targets_match_whole_parts_of_names(wanted, chosen):
    assert choose_targets(LINEAR, wanted) == chosen


@pytest.mark.parametrize("target", ["_attn", "q_proj", "", "h.2.attn.c_attn", "ALL-LINEAR"])
def test_target_that_matches_nothing_names_what_there_is(target):
    with pytest.raises(FedloraError, match=f"names {target!r}.*choose from c_attn, c_proj"):
        choose_targets(LINEAR, ["c_attn", target])


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bert"])
@pytest.mark.parametrize("which", ["all", "attention"])
def test_projections_are_those_that_peft_adapts(checkpoints, family, which):
    names = {
        "gpt2": ("c_attn",),
        "opt": ("q_proj", "out_proj"),
        "llama": ("q_proj", "v_proj"),
        "bert": ("query", "attention.output.dense"),
    }[family]
    targets = ("all-linear",) if which == "all" else names
    scenario = Scenario(lora=LoraConfig(targets=targets))
    engine = SplitEngine(Checkpoint(checkpoints[family]), scenario)
    base = (
        AutoModel.from_pretrained(checkpoints[family], add_pooling_layer=False)
        if (family == "bert")
        else AutoModel.from_pretrained(checkpoints[family])
    )
    peft = get_peft_model(
        base, PeftLoraConfig(target_modules="all-linear" if which == "all" else list(names))
    )
    adapted = [n for n, m in peft.base_model.model.named_modules() if hasattr(m, "lora_A")]
    assert [p.name for p in engine.projections] == adapted
    for projection in engine.projections:
        layer = peft.base_model.model.get_submodule(projection.name)
        assert (projection.d_in, projection.d_out) == (layer.in_features, layer.out_features)
