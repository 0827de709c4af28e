"""A projection that is computed in one step is the one that PEFT computes in eight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedlora.config import ComputeConfig, LoraConfig, ModelConfig, RobustConfig, Scenario
from fedlora.lora.fused import FusedLora, fuse
from fedlora.lora.layers import LoraProjection, add_lora
from fedlora.lora.masks import RankMasks
from fedlora.server.compute import SplitEngine
from fedlora.split import Blocks, Checkpoint

TOKENS = [5, 3, 4]
RANKS = [4, 0, 2]


def projections(folder: Path, *, fused: bool) -> list[LoraProjection]:
    blocks = Blocks(Checkpoint(folder), 0, 2, final=False, dtype=torch.float32)
    found = add_lora(blocks, LoraConfig(r_max=4, alpha=6.0, targets=("all-linear",)), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for projection in found:
            projection.B.normal_(generator=generator)
    masks = RankMasks(found, 4)
    masks.set([[rank] * len(found) for rank in RANKS], TOKENS, torch.device("cpu"))
    if fused:
        assert fuse(found, masks, None) == len(found)
    return found


def gradients(
    projection: LoraProjection, *, twice: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the output, and the gradients of a loss; or those of a loss of these gradients."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, sum(TOKENS), projection.d_in, generator=generator).requires_grad_()
    inputs = (x, projection.A, projection.B)
    y = projection.module(x)
    found = torch.autograd.grad(y.square().sum(), inputs, create_graph=twice)
    if twice:
        found = torch.autograd.grad(sum(g.square().sum() for g in found), inputs)
    return y, found


@pytest.mark.parametrize("twice", [False, True], ids=["gradient", "gradient of a gradient"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen2"])
def test_output_and_gradients_equal_pefts(checkpoints, family, twice):
    ours = projections(checkpoints[family], fused=True)
    theirs = projections(checkpoints[family], fused=False)
    for own, other in zip(ours, theirs, strict=True):
        y, found = gradients(own, twice=twice)
        expected_y, expected = gradients(other, twice=twice)
        torch.testing.assert_close(y, expected_y, rtol=1e-6, atol=1e-5)
        for one, wanted in zip(found, expected, strict=True):
            assert torch.dist(one, wanted) <= 1e-6 * wanted.norm()


def test_no_gradient_is_made_for_an_input_that_needs_none(checkpoints, monkeypatch):
    projection = projections(checkpoints["llama"], fused=True)[0]
    monkeypatch.delattr(FusedLora, "base_gradient")
    projection.module(torch.randn(1, sum(TOKENS), projection.d_in)).sum().backward()
    assert projection.A.grad is not None


def fused(folder: Path, **sections: object) -> int:
    engine = SplitEngine(Checkpoint(folder), Scenario(**sections))  # type: ignore[arg-type]
    return sum(isinstance(p.module.forward, FusedLora) for p in engine.projections)


@pytest.mark.parametrize(
    ("sections", "share"),
    [
        ({}, 1.0),
        ({"robust": RobustConfig(average="median")}, 1.0),
        ({"lora": LoraConfig(dropout=0.1)}, 0.0),  # its input is dropped out before A alone
        ({"model": ModelConfig(dtype="bf16")}, 1.0),
        # half of the blocks are brought by hooks
        ({"compute": ComputeConfig(device_map={"disk": "2-3"}, checkpoint=True)}, 0.5),
    ],
)
def test_what_pefts_order_of_work_matters_to_stays_pefts(checkpoints, sections, share):
    all_of_them = fused(checkpoints["llama"])
    assert fused(checkpoints["llama"], **sections) == share * all_of_them
