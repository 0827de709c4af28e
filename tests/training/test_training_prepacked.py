"""Frozen matrices that are laid out beforehand train as the plain ones do, but for rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.blocks import LENGTHS, gradients
from support.federation import Federation, relative, scenario
from torch import nn

from fedlora.config import ComputeConfig, LoraConfig, with_overrides
from fedlora.errors import FedloraError
from fedlora.lora.fused import fuse
from fedlora.lora.layers import add_lora
from fedlora.lora.masks import RankMasks
from fedlora.server.compute.placement import Placement
from fedlora.split import Blocks, Checkpoint, FewBitLinear, PrepackedLinear, to_prepack

pytestmark = pytest.mark.usefixtures("prepacks_small")

ROUNDED = "plain matrices, rounded as bf16 keeps them"


def ways(x: torch.Tensor, layer: nn.Module) -> list[torch.Tensor]:
    """Return output, gradient, and the gradient of that gradient's square."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (g,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.square().sum(), x)
    return [y, g, gg]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24)])
def test_output_and_gradients_of_all_orders_are_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(1)
    plain = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    own = PrepackedLinear(plain.weight, plain.bias, trains=True)
    x = torch.randn(shape)
    for found, expected in zip(ways(x, own), ways(x, plain), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(own.gradient(own.product(x.view(-1, 24))), own.gradient(own(x).view(-1, 40)))


def built(
    folder: Path, compute: ComputeConfig, form: str | None, idle: tuple[int, ...]
) -> tuple[Blocks, list[torch.Tensor]]:
    """Return blocks over two rows, and the gradients where some projections are idle."""
    blocks = Blocks(Checkpoint(folder), 0, 4, final=True, dtype=torch.float32, load=False)
    placement = Placement(blocks, compute, None if form == ROUNDED else form)
    placement.load()
    projections = add_lora(blocks, LoraConfig(r_max=3, alpha=6.0), 3)
    placement.attach(projections)
    if form == ROUNDED:
        for projection in projections:
            weight = projection.module.get_base_layer().weight
            weight.data = weight.bfloat16().float()
    masks = RankMasks(projections, 3)
    ranks = [0 if number in idle else 3 for number in range(len(projections))]
    masks.set([ranks], [sum(LENGTHS)], torch.device("cpu"))
    fuse(projections, masks, None)
    y, found = gradients(blocks, projections, idle)
    return blocks, [y.detach(), *found]


@pytest.mark.parametrize("idle", [(), (1, 6, 9)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_gradients_pass_projections_that_nobody_trains(checkpoints, family, idle):
    plain, expected = built(checkpoints[family], ComputeConfig(prepack_mib=0), None, idle)
    own, found = built(checkpoints[family], ComputeConfig(), None, idle)
    assert not [m for m in plain.modules() if isinstance(m, PrepackedLinear)]
    assert [m for m in own.modules() if isinstance(m, PrepackedLinear)]
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_pass_few_bits_that_nobody_trains(checkpoints, family):
    own, found = built(checkpoints[family], ComputeConfig(), "bf16", (1, 6, 9))
    assert [m for m in own.modules() if isinstance(m, FewBitLinear)]
    assert not [m for m in own.modules() if isinstance(m, PrepackedLinear)]
    _, expected = built(checkpoints[family], ComputeConfig(prepack_mib=0), ROUNDED, (1, 6, 9))
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_a_run_differs_from_one_with_plain_matrices_by_rounding(tiny, records, family):
    own = Federation(scenario(tiny[family], records)).run()
    blocks = own.server.engine.blocks
    assert [m for m in blocks.modules() if isinstance(m, PrepackedLinear)]
    plain = Federation(scenario(tiny[family], records, "compute.prepack_mib=0")).run()
    expected = plain.server.engine.adapter()
    for name, factor in own.server.engine.adapter().items():
        assert relative(factor, expected[name]) < 1e-4, name


def test_matrices_beyond_the_limit_and_small_ones_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("fedlora.split.prepacked._SMALLEST", 65)
    shapes = {"a": (512, 512), "b": (512, 512), "small": (8, 8)}
    both = {"a": 2 << 20, "b": 2 << 20}
    assert to_prepack(shapes, 4 << 20, trains=True) == both
    assert to_prepack(shapes, (4 << 20) - 1, trains=True) == {}
    assert to_prepack(shapes, 2 << 20, trains=False) == dict.fromkeys(both, 1 << 20)
    assert to_prepack({}, 4 << 20, trains=True) == {}
    with pytest.raises(FedloraError, match=r"compute\.prepack_mib"):
        with_overrides(scenario(Path(), Path()), ["compute.prepack_mib=-1"])
