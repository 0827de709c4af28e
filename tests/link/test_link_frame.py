"""The wire format: exact round trips, and refusal of everything else."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from support.link_peers import MALFORMED

from fedlora.errors import ProtocolError
from fedlora.link import Frame, decode_frame, encode_frame, peek_frame

LIMIT = 1 << 21
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.bool]


def sample() -> Frame:
    tensors = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in DTYPES}
    tensors |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    return Frame("step", "client ü", 7, {"a": [1, None, "x"], "b": {"c": 0.1}}, tensors)


def test_a_frame_survives_the_wire_exactly() -> None:
    sent = sample()
    got = decode_frame(encode_frame(sent), LIMIT)
    assert (got.kind, got.client, got.seq, got.fields) == ("step", "client ü", 7, sent.fields)
    assert got.tensors.keys() == sent.tensors.keys()
    for name, tensor in sent.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)


def test_tensors_that_are_not_contiguous_survive() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    frame = Frame("step", tensors={"t": x.T, "s": x[:, 1:3]})
    got = decode_frame(encode_frame(frame), LIMIT).tensors
    assert torch.equal(got["t"], x.T)
    assert torch.equal(got["s"], x[:, 1:3])


def test_received_tensors_are_aligned_so_that_results_do_not_depend_on_the_header() -> None:
    generator = torch.Generator().manual_seed(1)
    for n in range(1, 40):
        tensors = {str(i): torch.randn(n, 33, generator=generator) for i in range(3)}
        got = decode_frame(encode_frame(Frame("x" * n, tensors=tensors)), LIMIT).tensors
        assert all(t.data_ptr() % 64 == 0 for t in got.values())


def test_a_peek_is_the_frame_without_its_tensors() -> None:
    data = encode_frame(sample())
    peek, full = peek_frame(data, LIMIT), decode_frame(data, LIMIT)
    assert not peek.tensors
    assert (peek.kind, peek.client, peek.seq, peek.fields) == (
        full.kind,
        full.client,
        full.seq,
        full.fields,
    )


def test_encoding_is_deterministic() -> None:
    assert encode_frame(sample()) == encode_frame(sample())


def test_bits_count_the_tensors_of_a_prefix() -> None:
    frame = Frame("x", tensors={"z": torch.zeros(2, 3), "g.int8": torch.zeros(5, dtype=torch.int8)})
    assert (frame.bits(), frame.bits("z"), frame.bits("g")) == (8 * 29, 8 * 24, 8 * 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_that_is_not_finite_is_not_sent(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_frame(Frame("x", fields={"a": value}))


def test_a_frame_over_the_limit_is_refused() -> None:
    data = encode_frame(sample())
    assert decode_frame(data, len(data)).seq == 7
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        decode_frame(data, len(data) - 1)


def test_every_truncation_is_refused() -> None:
    data = encode_frame(sample())
    header_end = 12 + struct.unpack_from("<I", data, 8)[0]
    for end in range(len(data)):
        if end == header_end:
            continue  # a frame without tensors
        with pytest.raises(ProtocolError):
            decode_frame(data[:end], LIMIT)


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_to_the_letter_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(data, LIMIT)


def test_flipped_bits_never_raise_anything_but_protocol_errors() -> None:
    data = encode_frame(sample())
    generator = random.Random(3)
    refused = 0
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            decode_frame(bytes(changed), LIMIT)
        except ProtocolError:
            refused += 1
    assert refused > 1000


def test_received_tensors_come_in_the_order_of_their_names_every_time() -> None:
    data = encode_frame(sample())
    orders = {tuple(decode_frame(data, LIMIT).tensors) for _ in range(40)}
    assert orders == {tuple(sorted(sample().tensors))}


def test_tensors_are_in_the_order_of_their_names_whatever_safetensors_gives():
    """Its ``load`` has another order each time, and air time depends on what goes first."""
    names = [f"t{number}" for number in range(12)]
    data = encode_frame(Frame("x", tensors={n: torch.zeros(1) for n in reversed(names)}))
    assert all(list(decode_frame(data, 1 << 20).tensors) == sorted(names) for _ in range(20))


def test_tensors_that_share_or_stride_memory_are_written_as_they_are():
    """``safetensors.torch.save`` refuses what is not contiguous."""
    whole = torch.arange(12.0).view(3, 4)
    sent = {"turned": whole.T, "row": whole[:1].expand(2, 4), "part": whole[:, ::2]}
    found = decode_frame(encode_frame(Frame("x", tensors=sent)), 1 << 20).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in sent.items())
