"""Attention within packed rows is transformers' own of each row by itself."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fedlora.split.packed import attend

LENGTHS = [7, 1, 12, 3, 7, 20]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize(("heads", "own"), [(4, 4), (8, 2)], ids=["a pair each", "shared"])
@pytest.mark.parametrize("lengths", [LENGTHS, [5] * 4], ids=["lengths differ", "one length"])
def test_rows_and_their_gradients_are_those_of_transformers_attention(heads, own, causal, lengths):
    torch.manual_seed(heads)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = causal, heads // own
    tokens, width = sum(lengths), 16
    given = [
        torch.randn(1, tokens, n, width).transpose(1, 2).requires_grad_() for n in (heads, own, own)
    ]
    upstream = torch.randn(1, tokens, heads, width)
    told = {"scaling": 0.3, "dropout": 0.0}
    output, _ = attend(module, *given, None, row_lengths=lengths, **told)
    rows = zip(*(tensor.split(lengths, dim=2) for tensor in given), strict=True)
    alone = [sdpa_attention_forward(module, *row, None, **told)[0] for row in rows]
    expected = torch.cat(alone, dim=1)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(output, given, upstream)
    for mine, other in zip(found, torch.autograd.grad(expected, given, upstream), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
