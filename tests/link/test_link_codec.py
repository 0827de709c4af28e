"""Codecs: what they preserve, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from fedlora.errors import ProtocolError
from fedlora.link import Codec, Fp32Codec, Frame, decode_frame, encode_frame, pack, unpack
from fedlora.link.codec import Bf16Codec, Int8Codec

CODECS = [Fp32Codec(), Bf16Codec(), Int8Codec()]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda c: type(c).__name__)


def random(rows: int = 37, width: int = 24, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 4, (rows, 1), generator=generator)
    return scales * torch.randn(rows, width, generator=generator)


def over_the_wire(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(decode_frame(encode_frame(Frame("step", tensors=tensors)), 1 << 20).tensors)


def test_fp32_is_exact() -> None:
    x = random()
    assert torch.equal(
        unpack(over_the_wire(pack("z", x, Fp32Codec())), "z", Fp32Codec(), (37, 24)), x
    )


def test_bf16_is_exact_for_bf16_inputs() -> None:
    x = random().to(torch.bfloat16)
    y = unpack(over_the_wire(pack("z", x, Bf16Codec())), "z", Bf16Codec(), (37, 24))
    assert y.dtype == torch.float32
    assert torch.equal(y, x.to(torch.float32))


def test_bf16_error_is_at_most_half_a_unit_in_the_last_place() -> None:
    x = random()
    y = unpack(pack("z", x, Bf16Codec()), "z", Bf16Codec(), (37, 24))
    assert ((y - x).abs() <= x.abs() * 2.0**-8).all()


def test_int8_error_is_at_most_half_a_step_of_each_token() -> None:
    x = random()
    y = unpack(over_the_wire(pack("z", x, Int8Codec())), "z", Int8Codec(), (37, 24))
    half_step = x.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((y - x).abs() <= half_step * (1 + 1e-5)).all()
    assert ((y - x).abs() > half_step / 2).any()


def test_int8_keeps_zero_tokens_at_zero_and_huge_ones_finite() -> None:
    x = torch.zeros(3, 5)
    x[1, 2] = 1e38
    y = unpack(pack("z", x, Int8Codec()), "z", Int8Codec(), (3, 5))
    assert torch.equal(y[0], x[0])
    assert y[1, 2] == pytest.approx(x[1, 2].item(), rel=1e-6)


@every_codec
def test_any_leading_shape_is_packed_into_rows(codec: Codec) -> None:
    x = random(6, 8)
    packed, batched = pack("z", x, codec), pack("z", x.reshape(2, 3, 8), codec)
    assert packed.keys() == batched.keys()
    assert all(torch.equal(packed[k], batched[k]) for k in packed)


@every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(codec: Codec, bad: float) -> None:
    x = random()
    x[3, 4] = bad
    with pytest.raises(ProtocolError, match=r"z holds NaN or infinity.*lower train\.lr"):
        unpack(over_the_wire(pack("z", x, codec)), "z", codec, (37, 24))


@every_codec
@pytest.mark.parametrize("shape", [(36, 24), (37, 23), (24, 37), (37 * 24, 1), (0, 24)])
def test_another_shape_than_announced_is_refused(codec: Codec, shape: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        unpack(pack("z", random(), codec), "z", codec, shape)


@every_codec
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_another_dtype_than_announced_is_refused(codec: Codec, dtype: torch.dtype) -> None:
    parts = {name: part.to(dtype) for name, part in pack("z", random(), codec).items()}
    with pytest.raises(ProtocolError, match="expected"):
        unpack(over_the_wire(parts), "z", codec, (37, 24))


@pytest.mark.parametrize("sender", CODECS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("receiver", CODECS, ids=lambda c: type(c).__name__)
def test_a_payload_of_another_codec_is_refused(sender: Codec, receiver: Codec) -> None:
    if sender is receiver:
        return
    with pytest.raises(ProtocolError):
        unpack(pack("z", random(), sender), "z", receiver, (37, 24))


@every_codec
def test_a_missing_part_is_refused(codec: Codec) -> None:
    parts = pack("z", random(), codec)
    parts.pop(next(iter(parts)))
    with pytest.raises(ProtocolError):
        unpack(parts, "z", codec, (37, 24))


def test_a_name_is_not_taken_for_another_that_begins_alike() -> None:
    tensors = pack("z", random(), Fp32Codec()) | pack("zz", random(2, 3), Fp32Codec())
    assert unpack(tensors, "z", Fp32Codec(), (37, 24)).shape == (37, 24)
    assert unpack(tensors, "zz", Fp32Codec(), (2, 3)).shape == (2, 3)
