"""Whether a checkpoint's tensors are those of its configuration, by name and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fedlora.errors import FedloraError, shown
from fedlora.split.blocks import empty_model
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.family import Loader, find_family, title_of

_POOLER = "pooler."  # fedlora pools by itself
_SHOWN = 3
_MEND = "weights and configuration must be of one checkpoint"


def check_layout(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose base model is not the one that its configuration describes.

    Hugging Face gives a tensor that is lacking random values and passes over one that has no place,
    with a warning for each. A head is looked at by whoever loads it.

    Parameters
    ----------
    checkpoint
        A whole one.

    Raises
    ------
    FedloraError
        When a tensor is lacking, has another shape, or has no place in the model.
    """
    model = empty_model(checkpoint)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    family = find_family(checkpoint)
    modules = dict(model.named_modules())
    for name in (family.embedding, family.layers):
        if name not in modules:
            raise FedloraError(
                f"{title_of(type(family), checkpoint)} names the module {shown(name)}, which its "
                f"base model lacks; name one of {', '.join(_top(modules))}"
            )
    load = Loader(checkpoint, family, torch.float32)
    used, lacking = set(), []
    for name, shape in expected.items():
        stored = load.name(name)
        if stored is None:
            lacking.append(name)
            continue
        used.add(stored)
        found = checkpoint.entries[stored].shape
        if found != shape:
            raise FedloraError(
                f"{stored} in {checkpoint.folder} has shape {found}, and config.json makes it "
                f"{shape}; {_mend(name, family.embedding, found)}"
            )
    parameters = {name for name, _ in model.named_parameters()}
    lacking = [
        name
        for name in lacking
        if name in parameters
        and not name.startswith(_POOLER)
        and name != f"{family.embedding}.weight"  # may be stored as the head, see embeddings.py
    ]
    if lacking:
        raise FedloraError(
            f"{checkpoint.folder} has no tensor {_few(lacking)}, which config.json asks for; "
            f"finish the download, for {_MEND}"
        )
    spare = sorted(_in_base(checkpoint.entries, model, family.prefix) - used)
    spare = [name for name in spare if not _old(name, model)]
    if spare:
        raise FedloraError(
            f"{checkpoint.folder} holds {_few(spare)}, for which the model that config.json "
            f"describes has no place; {_MEND}"
        )


def _top(modules: Iterable[str]) -> list[str]:
    """Return modules that are not below one of a list."""
    return [name for name in modules if name and not re.search(r"\.\d", name)]


def _in_base(entries: Mapping[str, Any], model: Any, prefix: str) -> set[str]:
    """Return the stored tensors of the base model; others are of some head."""
    parts = {name.partition(".")[0] for name in model.state_dict()}
    parts.update(name for name, _ in model.named_children())
    return {name for name in entries if name.removeprefix(prefix).partition(".")[0] in parts}


def _old(name: str, model: Any) -> bool:
    """Tell whether Hugging Face knows a tensor as one that earlier releases wrote."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    patterns += [r"(^|\.)position_ids$", r"attn\.(masked_)?bias$"]
    return any(re.search(pattern, name) for pattern in patterns)


def _mend(name: str, embedding: str, found: tuple[int, ...]) -> str:
    if name == f"{embedding}.weight" and found:
        return f"set vocab_size to {found[0]}, if its vocabulary was resized"
    return _MEND


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
