"""Edge packages: the part of a checkpoint that a client needs, without the server's blocks."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fedlora.errors import FedloraError
from fedlora.split.blocks import Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.conformity import check_conformity
from fedlora.split.edge import Back, Front
from fedlora.split.embeddings import language_head
from fedlora.split.family import find_family
from fedlora.split.manifest import FILE, Manifest
from fedlora.split.tokenizer_files import TOKENIZER_FILES, copy_tokenizer
from fedlora.storage import FolderKind

SETTINGS = "generation_config.json"
RUN_FILE, RUN_SCENARIO, RUN_HEAD = "run.json", "scenario.toml", "head.safetensors"
"""What a package of a run has beside its ends of the model."""

_PACKAGE = FolderKind(
    "edge package",
    (FILE,),
    (
        *(FILE, "config.json", "model.safetensors", *TOKENIZER_FILES, SETTINGS),
        *(RUN_FILE, RUN_SCENARIO, RUN_HEAD),
    ),
)


@dataclass(frozen=True)
class Package:
    """An edge package that was written.

    Attributes
    ----------
    tensors
        Number of tensors in it.
    size_bytes, whole_bytes
        Size of its tensors, and of those of the whole checkpoint.
    manifest
        What it says of itself.
    """

    tensors: int
    size_bytes: int
    whole_bytes: int
    manifest: Manifest


def slice_checkpoint(
    source: Path,
    out: Path,
    client_front: int = 0,
    client_back: int = 0,
    *,
    overwrite: bool = False,
    tokens: bool = True,
) -> Package:
    """Write the edge package of a checkpoint.

    Parameters
    ----------
    source
        Folder of a whole checkpoint.
    out
        Folder to write, which must be empty or absent.
    client_front, client_back
        Blocks that stay on the client before and after the cut.
    overwrite
        Whether an earlier package in ``out`` is replaced.
    tokens
        Whether it is for texts: else token embedding, language head and tokenizer are left out.

    Raises
    ------
    FedloraError
        When the checkpoint is a package itself or cannot be cut so, the folder is in use, or
        transformers computes otherwise with the checkpoint's ends.
    """
    checkpoint = _Wanted(source)
    if checkpoint.manifest is not None:
        raise FedloraError(f"{source} is an edge package itself; slice the whole model")
    _PACKAGE.check_free(out, overwrite=overwrite, option="--out")
    wanted = checkpoint.wanted_by_clients(client_front, client_back, language=tokens, tokens=tokens)
    conformity = check_conformity(Checkpoint(source))
    out.mkdir(parents=True, exist_ok=True)
    _PACKAGE.clear(out)
    tensors = {}
    for name in wanted:
        with safe_open(checkpoint.entries[name].file, framework="pt") as file:
            tensors[name] = file.get_tensor(name)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    if tokens:
        copy_tokenizer(source, out)
        if (source / SETTINGS).is_file():  # which say what ends a text
            shutil.copyfile(source / SETTINGS, out / SETTINGS)
    manifest = Manifest(
        checkpoint.weights_digest,
        checkpoint.digest_of(wanted),
        client_front,
        client_back,
        conformity,
    )
    manifest.write(out)
    # Last: without it the folder is refused, so that half a package is never taken for a whole one.
    shutil.copyfile(source / "config.json", out / "config.json")
    sizes = {name: entry.stop - entry.start for name, entry in checkpoint.entries.items()}
    return Package(len(wanted), sum(sizes[n] for n in wanted), sum(sizes.values()), manifest)


def edge_tensors(
    source: Path, client_front: int, client_back: int, *, language: bool, tokens: bool = True
) -> list[str]:
    """Return the names of the tensors that a client asks for.

    Parameters
    ----------
    source
        Folder of a checkpoint.
    client_front, client_back
        Blocks that stay on the client.
    language
        Whether the output embedding is among them.
    tokens
        Whether the token embedding is.

    Raises
    ------
    FedloraError
        When the checkpoint cannot be cut so.
    """
    wanted = _Wanted(source)
    return wanted.wanted_by_clients(client_front, client_back, language=language, tokens=tokens)


class _Wanted(Checkpoint):
    """A checkpoint that notes which tensors are asked for, and reads none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._asked: set[str] = set()

    def load(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Note the name; the tensor that is returned has a shape and no values."""
        if name not in self.entries:
            return super().load(name, dtype)  # which says what is missing
        self._asked.add(name)
        return torch.empty(self.entries[name].shape, dtype=dtype, device="meta")

    def wanted_by_clients(
        self, client_front: int, client_back: int, *, language: bool = True, tokens: bool = True
    ) -> list[str]:
        """Return the names of the tensors that a client asks for; by default one of any task."""
        cut = Cut.of(self, client_front, client_back)
        Front(self, cut, torch.float32, None if tokens else nn.Identity())
        Back(self, cut, torch.float32, final=True)
        if language and find_family(self).causal:
            # Saved without an output embedding it is still of use for classification.
            with contextlib.suppress(FedloraError):
                language_head(self, torch.float32)
        return sorted(self._asked)
