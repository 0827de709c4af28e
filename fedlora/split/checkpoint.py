"""Reading a Hugging Face checkpoint tensor by tensor, so that each side loads only its own part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fedlora.errors import FedloraError
from fedlora.split.manifest import read_manifest

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"
_SAMPLE_BYTES, _COMPARED_BYTES = 1024, 2**24
_FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the weights' own dtypes; codes of a quantisation have others."""
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: file, dtype as safetensors names it, shape, byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """A local folder with ``config.json`` and one or several safetensors files.

    An edge package (``fedlora slice``) is one that holds a client's tensors only; its manifest
    tells the digest of the whole.

    Parameters
    ----------
    folder
        Hugging Face model folder.

    Raises
    ------
    FedloraError
        When the folder holds no configuration or no safetensors, a file is damaged, weights are
        quantised, or an edge package holds other tensors than its manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.config: dict[str, Any] = self._read_config()
        self.entries: dict[str, TensorEntry] = {}
        self._shared: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._equal: dict[tuple[str, str], bool] = {}
        self._refuse_quantisation()
        for file in self._files():
            self._add(_read_header(file))
        self._refuse_codes()
        if self.manifest and self.manifest.edge_digest != self.digest_of(self.entries):
            raise FedloraError(
                f"{folder} holds other tensors than its manifest says; make the package anew with "
                "fedlora slice, or copy it anew"
            )

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture, such as ``llama``."""
        return str(self.config.get("model_type", ""))

    @property
    def blocks(self) -> int:
        """Number of blocks of the whole model.

        Raises
        ------
        FedloraError
            When the configuration does not say.
        """
        return self.size("num_hidden_layers", "n_layer")

    def size(self, *keys: str) -> int:
        """Return a size of the model: the first of these keys that its configuration has.

        Raises
        ------
        FedloraError
            When it has none of them, or what is there is no positive number.
        """
        key = next((key for key in keys if self.config.get(key) is not None), keys[0])
        found = self.config.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise FedloraError(
                f"{self.folder / 'config.json'} has {found!r} as its {key}; copy it anew, or write "
                "there what the weights have"
            )
        return found

    def load(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return one tensor, cast to ``dtype``; without a cast its pages are mapped, not copied.

        Raises
        ------
        FedloraError
            When the checkpoint has no tensor of that name.
        """
        entry = self.entries.get(name)
        if entry is None and self.manifest:
            raise FedloraError(
                f"{self.folder} is an edge package without {name}; the server needs the whole "
                "model, and a client that holds blocks a package made with --front or --back"
            )
        if entry is None:
            raise FedloraError(f"{self.folder} has no tensor {name}; is the download complete?")
        with safe_open(entry.file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(dtype)

    def share(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return as ``load`` does, and the same memory each time, for weights that are tied.

        Who trains it trains a copy.
        """
        if (name, dtype) not in self._shared:
            self._shared[name, dtype] = self.load(name, dtype)
        return self._shared[name, dtype]

    def equal(self, one: str, other: str) -> bool:
        """Tell whether two tensors have the same dtype, shape and bytes."""
        first, second = self.entries[one], self.entries[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        if (one, other) not in self._equal:
            with first.file.open("rb") as a, second.file.open("rb") as b:
                a.seek(first.start)
                b.seek(second.start)
                sizes = [_COMPARED_BYTES] * ((first.stop - first.start) // _COMPARED_BYTES)
                sizes.append((first.stop - first.start) % _COMPARED_BYTES)
                self._equal[one, other] = all(a.read(size) == b.read(size) for size in sizes)
        return self._equal[one, other]

    @cached_property
    def config_digest(self) -> str:
        """SHA-256 of the configuration without keys that do not change the computation."""
        kept = {k: v for k, v in self.config.items() if k not in _VOLATILE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @cached_property
    def weights_digest(self) -> str:
        """``digest_of`` all tensors; an edge package's manifest tells that of the whole."""
        return self.manifest.weights_digest if self.manifest else self.digest_of(self.entries)

    def digest_of(self, names: Iterable[str]) -> str:
        """Return a SHA-256 over names, dtypes, shapes and a sample of the tensors' bytes.

        The sample (first and last kibibyte) tells two trainings of one architecture apart without
        reading many gigabytes.
        """
        digest = hashlib.sha256()
        for name in sorted(names):
            entry = self.entries[name]
            digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
            with entry.file.open("rb") as file:
                for start in (entry.start, max(entry.start, entry.stop - _SAMPLE_BYTES)):
                    file.seek(start)
                    digest.update(file.read(min(_SAMPLE_BYTES, entry.stop - start)))
        return digest.hexdigest()

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise FedloraError(
                f"{self.folder} has no config.json; set model.path to a Hugging Face model folder"
            ) from None
        except ValueError as error:
            raise FedloraError(f"{path} is not valid JSON ({error}); copy it anew") from None
        if not isinstance(config, dict):
            raise FedloraError(f"{path} holds no table; copy it anew")
        return config

    def _refuse_quantisation(self) -> None:
        """Refuse weights that are codes: their scales are the quantiser's, not the model's."""
        found = self.config.get("quantization_config")
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else None
            raise FedloraError(
                f"{self.folder / 'config.json'} has a quantization_config ({method or 'unnamed'}), "
                "and fedlora computes with weights as they are; take the model's edition in bf16, "
                "fp16 or fp32"
            )

    def _refuse_codes(self) -> None:
        """Refuse a weight or bias whose dtype is no float, whatever the configuration says."""
        for name, entry in self.entries.items():
            if name.rpartition(".")[2] in ("weight", "bias") and entry.dtype not in _FLOATS:
                raise FedloraError(
                    f"{name} in {entry.file} is stored as {entry.dtype}; fedlora reads weights in "
                    f"{', '.join(_FLOATS)}, so take the model's edition in one of these"
                )

    def _add(self, entries: Mapping[str, TensorEntry]) -> None:
        for name, entry in entries.items():
            if name in self.entries:
                raise FedloraError(
                    f"{name} is in {self.entries[name].file.name} and in {entry.file.name} of "
                    f"{self.folder}; copy the checkpoint anew"
                )
            self.entries[name] = entry

    def _files(self) -> list[Path]:
        """Return the weights' files: a single one counts before shards, as in transformers."""
        single, index = self.folder / "model.safetensors", self.folder / _INDEX
        files = [single]
        if not single.exists() and index.exists():
            files = [self.folder / name for name in self._shards(index)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise FedloraError(
                f"{self.folder} lacks {', '.join(missing)}; fedlora reads safetensors only, so "
                "finish the download, or save the model again with save_pretrained"
            )
        return files

    def _shards(self, index: Path) -> list[str]:
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return sorted({str(shard) for shard in shards})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FedloraError(
                f"{index} is no index of shards ({type(error).__name__}: {error}); copy it anew"
            ) from None


def _read_header(file: Path) -> dict[str, TensorEntry]:
    """Read the table of a safetensors file (little-endian length, then JSON)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > size:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            table = json.loads(stream.read(length))
        except ValueError as error:
            raise FedloraError(f"{file} is damaged ({error}); copy it anew") from None
    base = 8 + length
    entries = {
        name: TensorEntry(
            file,
            item["dtype"],
            tuple(item["shape"]),
            base + item["data_offsets"][0],
            base + item["data_offsets"][1],
        )
        for name, item in table.items()
        if name != "__metadata__"
    }
    if any(entry.stop > size for entry in entries.values()):
        raise FedloraError(f"{file} is cut short at {size} bytes; copy it anew")
    return entries
