"""Some of the blocks, and then the others, compute what all of them do, in every family."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.tiny_models import CONFIGS

from fedlora.split import Blocks, Checkpoint
from fedlora.split.families.llama import Llama

LENGTHS = [9, 5, 7]


def in_parts(blocks: Blocks, packed: torch.Tensor, marks: list[int]) -> torch.Tensor:
    states = packed
    for first, last in pairwise(marks):
        states = blocks(states, LENGTHS, first, last)
    return states


@pytest.mark.parametrize("family", CONFIGS)
def test_blocks_in_stretches_give_every_bit_of_all_of_them(checkpoints, family):
    for start in (0, 1) if family in ("gemma3_text", "bert", "opt-350m-layout") else (0,):
        blocks = Blocks(Checkpoint(checkpoints[family]), start, 4, final=True, dtype=torch.float32)
        width = 16 if family == "opt-350m-layout" and start == 0 else 32
        packed = torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(3))
        whole = blocks(packed, LENGTHS)
        layers = list(blocks.layers)
        end = len(blocks.layers)
        for marks in ([0, 1, 1, 2, end], [0, end, end]):
            assert torch.equal(in_parts(blocks, packed, marks), whole)
        assert list(blocks.layers) == layers


def test_a_stretch_of_padded_blocks_gives_every_bit_too(checkpoints, monkeypatch):
    monkeypatch.setattr(Llama, "packs", False)
    blocks = Blocks(Checkpoint(checkpoints["llama"]), 0, 4, final=True, dtype=torch.float32)
    packed = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(in_parts(blocks, packed, [0, 2, 4]), blocks(packed, LENGTHS))
