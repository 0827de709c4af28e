"""The longest sample that a scenario may ask for is one that the model takes."""

from __future__ import annotations

import pytest
import torch
from support.federation import scenario

from fedlora.config import TaskConfig
from fedlora.errors import FedloraError
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint
from fedlora.tasks import check_length

POSITIONS = 64


@pytest.mark.parametrize(
    "family", ["gpt2", "opt", "llama", "mistral", "qwen2", "gemma3_text", "bert", "roberta"]
)
def test_longest_sample_passes_through_the_model(tiny, records, family):
    checkpoint = Checkpoint(tiny[family])
    check_length(TaskConfig(max_length=POSITIONS), checkpoint)
    with pytest.raises(FedloraError, match=f"max_length 65 exceeds the {POSITIONS} positions"):
        check_length(TaskConfig(max_length=POSITIONS + 1), checkpoint)
    engine = SplitEngine(checkpoint, scenario(tiny[family], records))
    rows = ClientRows(
        torch.randn(POSITIONS, engine.geometry.activation_width), [POSITIONS], engine.full_ranks()
    )
    assert torch.isfinite(engine.forward([rows], train=False)[0]).all()
