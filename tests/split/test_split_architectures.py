"""Every architecture of transformers is computed as transformers does, or it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.architectures import ACCEPTED, tiny
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fedlora.errors import FedloraError
from fedlora.registry import resolve
from fedlora.split import (
    Back,
    Blocks,
    Checkpoint,
    Cut,
    Family,
    Front,
    LanguageHead,
    check_conformity,
    find_family,
)

ARCHITECTURES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})
LENGTHS = [9, 5, 7]
CUTS = [(0, 0), (1, 0), (0, 2), (1, 1)]


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 101, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    padded = torch.ones(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, part in enumerate(ids.split(LENGTHS)):
        padded[row, : len(part)], mask[row, : len(part)] = part, 1
    return ids, padded, mask


def split_states(checkpoint: Checkpoint, front: int, back: int, ids: torch.Tensor) -> torch.Tensor:
    cut = Cut.of(checkpoint, front, back)
    server = Blocks(checkpoint, cut.start, cut.stop, final=False, dtype=torch.float32)
    up = Front(checkpoint, cut, torch.float32)(ids, LENGTHS)
    down = server(up, LENGTHS)
    return Back(checkpoint, cut, torch.float32, final=True)(down, LENGTHS)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(torch.dist(ours, theirs) <= 1e-5 * theirs.norm())


# Configurations of theirs with which attention differs.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"is_decoder": True}),
    ("gemma3_text", {"use_bidirectional_attention": True}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gpt2", {"reorder_and_upcast_attn": True}),
    ("llama", {"attention_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    ("opt", {"do_layer_norm_before": False}),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
    ("smollm3", {"use_sliding_window": True, "no_rope_layer_interval": 2}),
]


@pytest.mark.parametrize(
    ("kind", "more"), [*((kind, {}) for kind in ARCHITECTURES if kind in ACCEPTED), *VARIANTS]
)
@torch.no_grad()
def test_an_accepted_architecture_computes_what_transformers_does(kind, more, tmp_path):
    causal = tiny(kind, tmp_path, **more)
    checkpoint = Checkpoint(tmp_path)
    check_conformity(checkpoint, language=causal)
    ids, padded, mask = rows()
    real = mask.bool()
    whole = AutoModel.from_pretrained(tmp_path).eval()
    expected = whole(input_ids=padded, attention_mask=mask).last_hidden_state[real]
    for cut in CUTS:
        assert close(split_states(checkpoint, *cut, ids), expected), cut
    if not causal:
        return
    whole = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    labels = torch.where(real, padded, -100)
    output = whole(input_ids=padded, attention_mask=mask, labels=labels)
    logits = LanguageHead.of(checkpoint, torch.float32)(split_states(checkpoint, 0, 0, ids))
    assert close(logits, output.logits[real])
    losses = [
        F.cross_entropy(row[:-1], targets[1:], reduction="none")
        for row, targets in zip(logits.split(LENGTHS), ids.split(LENGTHS), strict=True)
    ]
    assert float(torch.cat(losses).mean()) == pytest.approx(float(output.loss), rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ACCEPTED])
def test_any_other_architecture_is_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(FedloraError, match=f"model_type '{kind}' .* is of no supported family"):
        find_family(Checkpoint(tmp_path))


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "vaultgemma"])
def test_attention_that_depends_on_padding_is_refused(kind, tmp_path):
    tiny(kind, tmp_path, use_bidirectional_attention=True)
    with pytest.raises(FedloraError, match="use_bidirectional_attention true"):
        find_family(Checkpoint(tmp_path))


def test_the_table_in_the_docs_has_every_accepted_architecture_with_its_family():
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    told = {
        kind: family
        for kinds, family in re.findall(r"^\| (`[^|]*`[^|]*) \| `(\w+)` \|", page, re.MULTILINE)
        for kind in re.findall(r"`([^`]+)`", kinds)
    }
    assert told == {kind: resolve("families", kind, Family).__name__ for kind in ACCEPTED}
