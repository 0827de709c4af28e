"""Models of the sizes that people use, with random weights, and a scenario to rehearse each.

``python -m simulations.shapes 1b FOLDER --dtype bf16`` writes a checkpoint, rows and a
scenario: what a step and memory take does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedlora.errors import FedloraError
from fedlora.split import DTYPES
from simulations.refusals import one_sentence

_SCALE = 0.02
_REQUESTS, _ROWS = 12, 96  # short requests in a row, and rows


@dataclass(frozen=True)
class Shape:
    """A decoder's shape.

    Attributes
    ----------
    like
        The model whose shape it is.
    kind
        ``model_type`` of its configuration.
    width, blocks, heads, kv_heads, inner, vocabulary
        Its sizes.
    tied
        Whether the head is the embedding.
    """

    like: str
    kind: str
    width: int
    blocks: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = True

    def config(self, dtype: str) -> Mapping[str, object]:
        """Return the configuration as transformers reads it."""
        name = "Qwen2ForCausalLM" if self.kind == "qwen2" else "LlamaForCausalLM"
        return {
            "architectures": [name],
            "model_type": self.kind,
            "hidden_size": self.width,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype],
        }

    def tensors(self, block: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes of a block's tensors, or of those around the blocks."""
        width, keys = self.width, self.width // self.heads * self.kv_heads
        if block is None:
            yield "model.embed_tokens.weight", (self.vocabulary, width)
            yield "model.norm.weight", (width,)
            if not self.tied:
                yield "lm_head.weight", (self.vocabulary, width)
            return
        prefix = f"model.layers.{block}."
        for name, size in (("q_proj", width), ("k_proj", keys), ("v_proj", keys)):
            yield f"{prefix}self_attn.{name}.weight", (size, width)
            if self.kind == "qwen2":
                yield f"{prefix}self_attn.{name}.bias", (size,)
        yield f"{prefix}self_attn.o_proj.weight", (width, width)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}mlp.{name}.weight", (self.inner, width)
        yield f"{prefix}mlp.down_proj.weight", (width, self.inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (width,)


SHAPES = {
    "tiny": Shape("a small decoder", "llama", 64, 2, 4, 2, 128, 2048),
    "0.5b": Shape("Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 4864, 151_936),
    "1b": Shape("Llama-3.2-1B", "llama", 2048, 16, 32, 8, 8192, 128_256),
    "3b": Shape("Llama-3.2-3B", "llama", 3072, 28, 24, 8, 8192, 128_256),
    "7b": Shape("Llama-2-7B", "llama", 4096, 32, 32, 32, 11_008, 32_000, tied=False),
}

SCENARIO = """\
# {like}'s shape with random weights: what a step and memory take.
name = "shape-{name}"

[model]
path = "{folder}/model"
dtype = "{dtype}"

[task]
kind = "causal_lm"
max_length = 128

[data]
train = "{folder}/rows.csv"
holdout = 0.04

[federation]
clients = 3

[lora]
r_max = 8
targets = ["q_proj", "v_proj"]

[train]
rounds = 1
steps = 3
batch_size = 1

[link]
step_timeout_s = 600
reuse = false
activation = "bf16"
representation = "bf16"
gradient = "bf16"

[evaluate]
baseline = false
"""


def write_shape(name: str, folder: Path, dtype: str = "bf16", *, hollow: bool = False) -> Path:
    """Write a checkpoint of random weights, one shard a block, with rows and a scenario.

    Parameters
    ----------
    name
        One of ``SHAPES``.
    folder
        Folder to make.
    dtype
        ``bf16`` or ``fp32``, of the weights and of the scenario.
    hollow
        Whether all weights are zeros that take no room on the disk: enough for ``fedlora check``.

    Returns
    -------
    Path
        The scenario.
    """
    shape, model = SHAPES[name], folder / "model"
    if model.exists():
        raise FedloraError(f"{model} exists; name another folder, or remove it")
    model.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    for block in (None, *range(shape.blocks)):
        shard = f"model-{'ends' if block is None else f'{block:02d}'}.safetensors"
        sizes = dict(shape.tensors(block))
        if hollow:
            _write_hollow(model / shard, sizes, dtype)
        else:
            drawn = {key: _draw(size, generator, DTYPES[dtype]) for key, size in sizes.items()}
            save_file(drawn, model / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(sizes, shard)
    index = {"metadata": {}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text(json.dumps(shape.config(dtype), indent=1))
    shipped = files("simulations") / "quickstart"
    for part in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(shipped / "decoder" / part), model / part)
    requests = (shipped / "requests.csv").read_bytes().decode()
    texts = [row["text"] for row in csv.DictReader(io.StringIO(requests, newline=""))]
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text"])
        for row in range(_ROWS):
            rows.writerow([", ".join(texts[row * _REQUESTS : (row + 1) * _REQUESTS])])
    scenario = folder / "scenario.toml"
    told = {"name": name, "like": shape.like, "dtype": dtype, "folder": folder.absolute()}
    scenario.write_text(SCENARIO.format(**told))
    return scenario


def _draw(size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Draw weights; a norm's are ones."""
    if len(size) == 1:
        return torch.ones(size, dtype=dtype)
    return torch.randn(size, generator=generator, dtype=torch.float32).mul_(_SCALE).to(dtype)


def _write_hollow(path: Path, sizes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Write a safetensors file of which the system keeps the header alone."""
    header, end, width = dict[str, object](), 0, DTYPES[dtype].itemsize
    for name, size in sizes.items():
        begin, end = end, end + math.prod(size) * width
        kind = {"bf16": "BF16", "fp32": "F32"}[dtype]
        header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def main() -> None:
    """Write what the command line names, and print the scenario's path."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.shapes",
        description="Write a checkpoint of random weights, rows and a scenario.",
    )
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--hollow", action="store_true", help="zeros that take no room on disk")
    asked = parser.parse_args()
    print(write_shape(asked.name, asked.folder, asked.dtype, hollow=asked.hollow))


if __name__ == "__main__":
    with one_sentence():
        main()
