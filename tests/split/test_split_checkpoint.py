"""What a checkpoint's files say is honoured as transformers honours it, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from fedlora.errors import FedloraError
from fedlora.split import Checkpoint


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["llama"], tmp_path / "model"))


def change_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("found", "method"),
    [({"quant_method": "fp8", "weight_block_size": [8, 8]}, "fp8"), ({"bits": 4}, "unnamed")],
)
def test_a_quantised_checkpoint_is_refused_with_its_method(folder, found, method):
    change_config(folder, quantization_config=found)
    with pytest.raises(FedloraError, match=rf"quantization_config \({method}\).*edition in bf16"):
        Checkpoint(folder)


def test_an_empty_quantisation_is_none(folder):
    change_config(folder, quantization_config=None)
    assert Checkpoint(folder).blocks == 4


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_codes_in_place_of_weights_are_refused_though_the_configuration_is_silent(folder, dtype):
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("q_proj.weight"))
    weights[name] = weights[name].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        FedloraError, match=rf"{name} in .* is stored as .*take the model's edition"
    ):
        Checkpoint(folder)


def test_positions_that_are_stored_as_numbers_are_no_codes(folder):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.position_ids"] = torch.arange(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "embeddings.position_ids" in Checkpoint(folder).entries


def test_a_single_file_counts_before_shards_as_in_transformers(folder):
    name = "model.embed_tokens.weight"
    weights = load_file(folder / "model.safetensors")
    other = {key: torch.zeros_like(value) for key, value in weights.items()}
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = AutoModel.from_pretrained(folder).get_input_embeddings().weight
    assert torch.equal(Checkpoint(folder).load(name, torch.float32), theirs)
    (folder / "model.safetensors").unlink()
    assert not Checkpoint(folder).load(name, torch.float32).any()
    assert not AutoModel.from_pretrained(folder).get_input_embeddings().weight.any()


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FedloraError, match="is no index of shards"):
        Checkpoint(folder)
