"""Checkpoints of random weights in the sizes that people use: their shapes, and what check says."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from fedlora.preview import Load, find_faults, predict_sizes
from fedlora.split import Checkpoint
from simulations.shapes import SHAPES, write_shape

PUBLISHED = {"0.5b": 494_032_768, "1b": 1_235_814_400, "3b": 3_212_749_824, "7b": 6_738_415_616}


def numbers(name: str, *, ends: bool = True) -> int:
    parts = [None, *range(SHAPES[name].blocks)] if ends else range(SHAPES[name].blocks)
    return sum(math.prod(size) for part in parts for _, size in SHAPES[name].tensors(part))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_the_model_that_it_is_named_after(name):
    assert numbers(name) == PUBLISHED[name]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_transformers_finds_every_weight_and_no_other(tmp_path, dtype):
    write_shape("tiny", tmp_path / "tiny", dtype)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tiny" / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert sum(p.numel() for p in model.parameters()) == numbers("tiny")


@pytest.mark.parametrize(("name", "width"), [("1b", 2), ("7b", 2), ("7b", 4)])
def test_what_a_large_model_takes_is_told_of_a_hollow_checkpoint(tmp_path, name, width):
    path = write_shape(name, tmp_path / "it", {2: "bf16", 4: "fp32"}[width], hollow=True)
    on_disk = sum(file.stat().st_blocks for file in (tmp_path / "it" / "model").iterdir())
    assert on_disk * 512 < 4 << 20
    scenario = load_scenario(path)
    checkpoint = Checkpoint(tmp_path / "it" / "model")
    sizes = predict_sizes(scenario, checkpoint, Load(128, 127, 0, 0), 0)
    assert sizes.server_weights == width * numbers(name, ends=False)
    shape = SHAPES[name]
    ends = shape.vocabulary * shape.width * (1 if shape.tied else 2) + shape.width
    assert sizes.device_weights == width * ends


def test_a_hollow_checkpoint_has_no_fault_that_its_shapes_have_not(tmp_path):
    assert not find_faults(load_scenario(write_shape("tiny", tmp_path / "it", hollow=True)))
    with pytest.raises(FedloraError, match="exists; name another folder"):
        write_shape("tiny", tmp_path / "it", hollow=True)
