"""What a scenario makes of a checkpoint is the same for the check, the server and the clients."""

from __future__ import annotations

import pytest
from support.tiny_models import CONFIGS

from fedlora.config import Scenario, with_overrides
from fedlora.geometry import Geometry
from fedlora.lora.targets import choose_targets, in_model_order, linear_modules
from fedlora.server.compute import SplitEngine
from fedlora.split import Checkpoint


@pytest.mark.parametrize("cut", [(0, 0), (1, 1)])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_modules_that_are_checked_are_those_that_the_server_adapts(checkpoints, family, cut):
    checkpoint = Checkpoint(checkpoints[family])
    overrides = [f"model.client_front={cut[0]}", f"model.client_back={cut[1]}"]
    scenario = with_overrides(Scenario(), overrides)
    geometry = Geometry.of(scenario, checkpoint)
    engine = SplitEngine(checkpoint, scenario)
    checked = choose_targets(linear_modules(checkpoint, geometry.cut), scenario.lora.targets)
    prefix = engine.blocks.family.prefix
    assert [name.removeprefix(prefix) for name in in_model_order(checked, checkpoint)] == [
        projection.name for projection in engine.projections
    ]
    assert sorted(name.removeprefix(prefix) for name in checked) == sorted(
        projection.name for projection in engine.projections
    )


@pytest.mark.parametrize(
    ("overrides", "pools", "trains"),
    [
        ((), True, True),
        (("model.client_back=1",), False, True),
        (("head.train=no",), True, False),
        (("task.kind=causal_lm",), False, False),
        (("task.kind=causal_lm", "head.train=yes"), False, True),
    ],
)
def test_the_server_pools_what_has_passed_its_last_block_and_is_a_pooled_task(
    checkpoints, overrides, pools, trains
):
    scenario = with_overrides(Scenario(), overrides)
    geometry = Geometry.of(scenario, Checkpoint(checkpoints["llama"]))
    assert (geometry.server_pools, geometry.trains_head) == (pools, trains)


@pytest.mark.parametrize(("cut", "up", "down", "head"), [((0, 0), 1, 1, 1), ((1, 1), 0, 0, 1)])
def test_widths_are_the_embeddings_next_to_one_and_the_hidden_size_between_blocks(
    checkpoints, cut, up, down, head
):
    checkpoint = Checkpoint(checkpoints["opt"])
    widths = (checkpoint.config["hidden_size"], checkpoint.config["word_embed_proj_dim"])
    overrides = [f"model.client_front={cut[0]}", f"model.client_back={cut[1]}"]
    found = Geometry.of(with_overrides(Scenario(), overrides), checkpoint)
    assert found.activation_width == widths[up]
    assert found.representation_width == widths[down]
    assert found.head_width == widths[head]
