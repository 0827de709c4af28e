"""``distinct``: exact, each row once, and no places that lead elsewhere."""

from __future__ import annotations

import pytest
import torch

from fedlora.errors import ProtocolError
from fedlora.link import DistinctCodec, Frame, decode_frame, encode_frame, pack, places_bits, unpack
from fedlora.link.rotated import RotatedCodec


def random(rows: int, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def sent(x: torch.Tensor, codec) -> tuple[torch.Tensor, int]:
    parts = pack("activation", x, codec)
    frame = decode_frame(encode_frame(Frame("activation", tensors=parts)), 1 << 26)
    shape = (x.shape[0], x.shape[1])
    return unpack(frame.tensors, "activation", codec, shape), frame.bits()


@pytest.mark.parametrize("distinct", [1, 7, 200, 300, 33000])
def test_equal_rows_are_sent_once_and_come_back_to_the_bit(distinct):
    width = 2 if distinct > 1000 else 32
    numbers = torch.randint(
        0, distinct, (distinct + 50,), generator=torch.Generator().manual_seed(0)
    )
    numbers[:distinct] = torch.arange(distinct).flip(0)
    x = random(distinct, width)[numbers]
    y, bits = sent(x, DistinctCodec())
    assert torch.equal(x, y)
    assert bits == 32 * width * distinct + places_bits(len(x), distinct)
    index = 8 if distinct <= 256 else 16 if distinct <= 32768 else 32
    assert places_bits(len(x), distinct) == index * len(x)


def test_rows_that_differ_take_what_fp32_takes():
    x = random(40)
    x[:, 0] = 1.0
    x[3], x[9] = 0.0, 0.0
    x[9, 5] = -0.0
    y, bits = sent(x, DistinctCodec())
    assert torch.equal(y.view(torch.int32), x.view(torch.int32)), "-0.0 is not 0.0"
    assert bits == 40 * 32 * 32
    assert sent(x[:0], DistinctCodec())[0].shape == (0, 32)


def test_few_bits_write_equal_rows_once_and_as_they_would_alone():
    x, codec = random(20, 128), RotatedCodec(4)
    repeated = x[torch.arange(200) % 20]
    y, bits = sent(repeated, codec)
    alone, alone_bits = sent(x, codec)
    assert torch.equal(y, alone[torch.arange(200) % 20])
    assert bits == alone_bits + 8 * 200
    assert not any(name.endswith(".place") for name in pack("g", repeated, codec, bytes(32)))


@pytest.mark.parametrize("codec", [DistinctCodec(), RotatedCodec(4)])
@pytest.mark.parametrize(
    "places",
    [
        torch.tensor([0, 1, 2] * 3, dtype=torch.uint8),
        torch.tensor([0, 1, 2] * 3 + [3], dtype=torch.uint8),
        torch.tensor([0, 1, 2] * 3 + [0], dtype=torch.int64),
        torch.tensor([0, 1, 2] * 3 + [-1], dtype=torch.int16),
        torch.tensor([0, 2, 2] * 3 + [0], dtype=torch.uint8),
        torch.arange(10, dtype=torch.uint8),
    ],
)
def test_places_that_lead_elsewhere_are_refused(codec, places):
    parts = pack("z", random(3)[torch.tensor([0, 1, 2] * 3 + [0])], codec)
    assert parts["z.place"].dtype == torch.uint8
    assert len(set(parts["z.place"][:3].tolist())) == 3
    with pytest.raises(ProtocolError, match=r"expected|stands where"):
        unpack(parts | {"z.place": places}, "z", codec, (10, 32))


def test_parts_of_another_codec_or_shape_are_refused():
    with pytest.raises(ProtocolError, match="expected rows of float32"):
        unpack(pack("z", random(3), RotatedCodec(4)), "z", DistinctCodec(), (3, 32))
    with pytest.raises(ProtocolError, match="expected rows of"):
        unpack(pack("z", random(3), DistinctCodec()), "z", DistinctCodec(), (4, 32))
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        unpack(pack("z", random(3) / 0, DistinctCodec()), "z", DistinctCodec(), (3, 32))
