"""What a strategy's state may hold, and how it becomes JSON and tensors without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedlora.errors import FedloraError

State = dict[str, Any]

_MOST_BITS = 8192
ARRAY, TENSOR = "$array", "$tensor"


def pack_state(state: Mapping[str, Any]) -> tuple[State, dict[str, torch.Tensor]]:
    """Split a state into JSON and tensors.

    Parameters
    ----------
    state
        Nested tables with string keys, lists and tuples whose leaves are ``None``, bool, int,
        finite float, str, NumPy arrays of numbers, and tensors.

    Returns
    -------
    tree
        The state in JSON's types; an array is replaced by a reference to its tensor.
    tensors
        Copies of the arrays and tensors by name, as safetensors stores them.

    Raises
    ------
    FedloraError
        When the state holds anything else; the message names the place.
    """
    tensors: dict[str, torch.Tensor] = {}
    if not isinstance(state, Mapping):
        raise FedloraError(f"the state is a {type(state).__name__}; return a dict")
    return _pack(state, "", tensors), tensors


def unpack_state(tree: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> State:
    """Undo ``pack_state``; tuples come back as lists.

    Raises
    ------
    FedloraError
        When a tensor is missing.
    """
    return {key: _unpack(value, tensors) for key, value in tree.items()}


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:  # JSON would not read it back
        raise FedloraError(
            f"the state's {path.lstrip('.')} is an int of {value.bit_length()} bits; keep at most "
            f"{_MOST_BITS}"
        )
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key in (ARRAY, TENSOR):
                raise FedloraError(
                    f"the state's key {path}[{key!r}] is not allowed; use another str"
                )
        return {key: _pack(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    name = f"{len(tensors)}{path}"  # the number keeps "a.b" and "a" -> "b" apart
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.itemsize <= 8:
        tensors[name] = torch.from_numpy(np.array(value, order="C"))
        return {ARRAY: name}
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    raise FedloraError(
        f"the state's {path.lstrip('.')} is {value!r:.80}, a {type(value).__name__}; keep finite "
        "numbers, str, lists, dicts with str keys, NumPy arrays of numbers or tensors"
    )


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, Mapping):
        for kind in (ARRAY, TENSOR):
            if kind in value:
                if value[kind] not in tensors:
                    raise FedloraError(
                        f"the state's tensor {value[kind]!r} is missing; take the whole checkpoint"
                    )
                tensor = tensors[value[kind]].clone()
                return tensor.numpy() if kind == ARRAY else tensor
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value
