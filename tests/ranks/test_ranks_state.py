from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from fedlora.ranks import FedloraError, pack_state, unpack_state


def through_files(state):
    tree, tensors = pack_state(state)
    return unpack_state(json.loads(json.dumps(tree, allow_nan=False)), load(save(tensors)))


def test_scalars_and_tables_come_back_as_they_were():
    state = {"a": [1, 2.5, None, True, "x"], "b": {"c": {"d": []}}, "big": 2**127}
    assert through_files(state) == state


def test_a_generators_state_can_be_stored():
    generator, other = np.random.default_rng(1), np.random.default_rng(2)
    generator.random(3)
    other.bit_generator.state = through_files(generator.bit_generator.state)
    assert other.random() == generator.random()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float64"])
def test_arrays_come_back_bit_for_bit(dtype):
    array = np.arange(6).reshape(2, 3).T.astype(dtype)  # not contiguous
    back = through_files({"x": [array]})["x"][0]
    assert isinstance(back, np.ndarray)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_tensors_come_back_as_tensors():
    tensor = torch.arange(4, dtype=torch.bfloat16, requires_grad=True)
    back = through_files({"x": tensor})["x"]
    assert back.dtype == torch.bfloat16
    assert torch.equal(back, tensor)


def test_names_with_dots_do_not_collide():
    back = through_files({"a.b": np.array([1]), "a": {"b": np.array([2])}})
    assert (back["a.b"][0], back["a"]["b"][0]) == (1, 2)


def test_a_packed_state_does_not_change_with_the_strategy():
    array = np.zeros(2)
    _, tensors = pack_state({"x": array})
    array[:] = 1
    assert all(float(t.sum()) == 0 for t in tensors.values())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": {1, 2}}, "x is {1, 2}, a set"),
        ({"x": {"y": float("nan")}}, "x.y is nan"),
        ({"x": {3: 1}}, r"key .x\[3\] is not allowed"),
        ({"$array": 1}, "is not allowed"),
        ({"x": [object()]}, "x.0 is <object"),
        ({"x": np.array(["a"])}, "a ndarray"),
        ({"x": np.float32(1)}, "a float32"),
        ([1], "the state is a list; return a dict"),
        ({"x": [10**5000]}, "x.0 is an int of 16610 bits; keep at most 8192"),
    ],
)
def test_what_would_need_pickle_is_refused_with_its_place(state, message):
    with pytest.raises(FedloraError, match=message):
        pack_state(state)


def test_a_missing_tensor_is_named():
    tree, _ = pack_state({"x": np.zeros(1)})
    with pytest.raises(FedloraError, match=r"tensor '0\.x' is missing"):
        unpack_state(tree, {})
