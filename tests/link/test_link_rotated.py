"""``rotated``: unbiased or bounded as it says, the same everywhere, and hostile bytes refused."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
import torch

from fedlora.config import LinkConfig
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import Frame, create_codec, decode_frame, encode_frame, pack, rotation, unpack
from fedlora.link.rotated import RotatedCodec

EVERY = pytest.mark.parametrize("bits", [2, 3, 5, 8, 9, 12])


def random(rows: int = 40, width: int = 384, seed: int = 1) -> torch.Tensor:
    """Return rows with one channel far above the others, as hidden states have."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    x[:, 3 % width] *= 30
    return x


def sent(x: torch.Tensor, codec: RotatedCodec, key: bytes | None = None) -> torch.Tensor:
    tensors = decode_frame(encode_frame(Frame("step", tensors=pack("z", x, codec, key))), 1 << 24)
    return unpack(tensors.tensors, "z", codec, (x.shape[0], x.shape[1]))


def dense(width: int, seed: int = 0) -> torch.Tensor:
    """Return the rotation of a row of one group as a matrix, from Sylvester's construction."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < width:
        h = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), h)
    digest = hashlib.shake_256(f"fedlora rotated {seed}".encode()).digest(width // 8)
    signs = [1 - 2 * (byte >> (7 - i) & 1) for byte in digest for i in range(8)]
    return torch.tensor(signs, dtype=torch.float64)[:, None] * h


@EVERY
def test_a_rotated_number_is_off_by_at_most_its_scale(bits):
    x, codec = random(width=128), RotatedCodec(bits)
    off = (sent(x, codec).double() - x.double()) @ dense(128)
    scale = (x.double() @ dense(128)).abs().amax(dim=1, keepdim=True) / (2**bits - 1)
    assert (off.abs() <= scale * (1 + 2**-7)).all()
    assert (off.abs() > scale / 2).any()


@EVERY
def test_what_is_rounded_at_random_has_the_mean_of_what_was_sent(bits):
    """Each number's mean over draws lies within six standard errors, and their squares add up."""
    x, codec, draws = random(2, 128), RotatedCodec(bits), 200
    read = torch.stack([sent(x, codec, bytes([i % 256, i // 256] * 16)) for i in range(draws)])
    error = (read.double().mean(0) - x).div(read.double().std(0) / draws**0.5)
    assert float(error.abs().max()) < 6
    assert float(error.square().mean()) == pytest.approx(1, abs=0.35)


def test_the_nearest_level_is_biased_where_a_random_one_is_not():
    """The test above can fail: it does for rounding to the nearest level."""
    x, codec = random(4, 128), RotatedCodec(2)
    off = (sent(x, codec) - x).abs().mean()
    mean = torch.stack([sent(x, codec, bytes([i] * 32)) for i in range(200)]).mean(0)
    assert float((mean - x).abs().mean()) < float(off) / 3


def test_fewer_bits_are_sent_than_said_and_huffmans_code_pays():
    for bits, most in ((3, 2.9), (4, 3.9), (5, 4.9)):
        x = random(200)
        parts = RotatedCodec(bits).encode(x)
        told = 8 * sum(part.nbytes for part in parts.values()) / x.numel()
        assert told < most, f"{told:.2f} bits a number"
        assert any(name.endswith("-h") for name in parts)


def test_a_large_channel_costs_the_others_little():
    x = random(200)
    error = (sent(x, RotatedCodec(4)) - x).norm() / x.norm()
    plain = x.clone()
    scale = x.abs().amax(1, keepdim=True) / 7.5
    plain = ((plain / scale).round() * scale - x)[:, 4:].norm() / x[:, 4:].norm()
    assert float(error) < 0.12 < float(plain)


@pytest.mark.parametrize("width", [1, 2, 19, 48, 100, 128, 192, 320, 640])
def test_every_width_comes_back(width):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    assert float((sent(x, RotatedCodec(8)) - x).norm() / x.norm()) < 0.02
    assert sent(x[:0], RotatedCodec(8)).shape == (0, width)


def test_a_row_that_is_sent_again_with_others_is_the_same():
    x = random()
    for codec in (RotatedCodec(4), RotatedCodec(7, 32)):
        again = torch.cat([sent(x[[9, 2]], codec), sent(x[[30]], codec)])
        assert torch.equal(again, sent(x, codec)[[9, 2, 30]])


def test_zeros_stay_zeros_and_no_size_of_a_number_matters():
    x = torch.zeros(4, 128)
    x[1], x[2], x[3, 0] = 1e-20, 3e35, 1e-44
    y = sent(x, RotatedCodec(8))
    assert torch.equal(y[0], x[0])
    assert torch.allclose(y[1:3] / x[1:3], torch.ones(2, 128), atol=0.2)
    assert float(y[3].abs().max()) < 1e-28


def test_the_same_bytes_give_the_tensor_that_they_gave_on_another_machine():
    """Levels, scales and seed are written down here; the digest is that of the first release."""
    levels = torch.arange(2 * 384, dtype=torch.int64).mul(37).remainder(16).to(torch.uint8)
    packed = (levels[0::2] << 4) | levels[1::2]
    scale = torch.tensor([0.5, 1.25, 3e-5, 7.0, 0.0, 1e20], dtype=torch.bfloat16)
    parts = {".rot1-b4-g128-s77": packed, ".scale": scale}
    x = RotatedCodec(4).decode(parts, (2, 384))
    y = 2 * levels.double().view(6, 128) - 15
    h = dense(128).abs().mul(dense(128)) * dense(128)[:, :1]  # Sylvester's matrix, signs undone
    exact = ((y * scale.double()[:, None] / 128) @ h).view(2, 384)
    digest = hashlib.shake_256(b"fedlora rotated 77").digest(48)
    signs = [1 - 2 * (byte >> (7 - i) & 1) for byte in digest for i in range(8)]
    assert torch.equal(x.double(), exact * torch.tensor(signs, dtype=torch.float64))


@pytest.mark.parametrize("bits", [9, 10, 11, 12])
def test_wide_levels_are_read_as_they_stand_in_the_bytes(bits):
    """Levels are written down here as digits, one after the other."""
    levels = [(37 * n * n + 5) % (1 << bits) for n in range(15)] + [(1 << bits) - 1]
    digits = "".join(f"{level:0{bits}b}" for level in levels)
    digits += "0" * (-len(digits) % 8)
    stream = torch.tensor([int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)])
    parts = {f".rot1-b{bits}-g16-s0": stream.to(torch.uint8), ".scale": torch.ones(1).bfloat16()}
    x = RotatedCodec(bits, 16).decode(parts, (1, 16))
    y = 2 * torch.tensor(levels, dtype=torch.float64) - (1 << bits) + 1
    assert torch.equal(x.double() @ dense(16), y[None])
    again = RotatedCodec(bits, 16).encode(x)
    assert torch.allclose(again[".scale"].float(), torch.ones(1), atol=2**-7)
    with pytest.raises(ProtocolError, match=rf"{len(stream) + 1} bytes of levels, expected 16 of"):
        longer = torch.cat([stream, stream[:1]]).to(torch.uint8)
        RotatedCodec(bits, 16).decode({**parts, f".rot1-b{bits}-g16-s0": longer}, (1, 16))
    coded = {f".rot1-b{bits}-g16-s0-h": stream.to(torch.uint8), ".scale": parts[".scale"]}
    with pytest.raises(ProtocolError, match="no code"):
        RotatedCodec(bits, 16).decode(coded, (1, 16))


def test_each_bit_more_halves_what_is_off():
    x = random()
    off = [float((sent(x, RotatedCodec(bits)) - x).norm() / x.norm()) for bits in range(6, 13)]
    assert all(1.7 < more / less < 2.3 for more, less in pairwise(off))


def test_the_seed_of_what_is_read_comes_with_it():
    x = random()
    parts = pack("z", x, RotatedCodec(8, seed=123))
    assert any("-s123" in name for name in parts)
    y = unpack(parts, "z", RotatedCodec(8, seed=5), (40, 384))
    assert float((y - x).norm() / x.norm()) < 0.02


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({".rot2-b4-g128-s0": None}, "profile .rot2.*expected .rot1-b4-g128; give both"),
        ({".rot1-b5-g128-s0": None}, "same bits and group"),
        ({".rot1-b4-g64-s0": None}, "same bits and group"),
        ({".rot1-b4-g128-s0x": None}, "expected a profile"),
        ({".rot1-b4-g128-s0": torch.zeros(10, dtype=torch.uint8)}, "10 bytes of levels, expected"),
        ({".rot1-b4-g128-s0-h": torch.zeros(10, dtype=torch.uint8)}, "Huffman|levels"),
        ({".rot1-b4-g128-s0": torch.zeros(10)}, "expected a line of uint8"),
    ],
)
def test_bytes_of_another_profile_or_length_are_refused(other, words):
    scale = RotatedCodec(4).encode(random())[".scale"]
    ((name, levels),) = other.items()
    levels = torch.zeros(7680, dtype=torch.uint8) if levels is None else levels
    with pytest.raises(ProtocolError, match=words):
        unpack({"z" + name: levels, "z.scale": scale}, "z", RotatedCodec(4), (40, 384))


def test_a_stream_that_grows_without_end_is_read_no_further_than_it_may():
    bomb, coded = RotatedCodec(8)._write(torch.zeros(1 << 24, dtype=torch.uint8).numpy())
    assert coded
    parts = {"z.rot1-b4-g128-s0-h": torch.from_numpy(bomb), "z.scale": torch.zeros(120).bfloat16()}
    with pytest.raises(ProtocolError, match="other than the expected 15360 levels"):
        unpack(parts, "z", RotatedCodec(4), (40, 384))


def test_levels_and_scales_that_no_codec_writes_are_refused():
    codec = RotatedCodec(4)
    stream, _ = codec._write(torch.full((15360,), 16, dtype=torch.uint8).numpy())
    good = codec.encode(random())[".scale"]
    name = "z.rot1-b4-g128-s0-h"
    with pytest.raises(ProtocolError, match="level beyond those of 4 bits"):
        unpack({name: torch.from_numpy(stream), "z.scale": good}, "z", codec, (40, 384))
    parts = pack("z", random(), codec)
    with pytest.raises(ProtocolError, match="scale below 0"):
        unpack(parts | {"z.scale": -good}, "z", codec, (40, 384))
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        unpack(parts | {"z.scale": good * float("inf")}, "z", codec, (40, 384))
    with pytest.raises(ProtocolError, match=r"expected \(120,\) of torch.bfloat16"):
        unpack(parts | {"z.scale": good.float()}, "z", codec, (40, 384))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    x = random()
    x[3, 4] = bad
    for key in (None, bytes(32)):
        with pytest.raises(ProtocolError, match=r"z holds NaN or infinity.*lower train\.lr"):
            sent(x, RotatedCodec(4), key)


def test_bits_that_a_codec_cannot_have_are_refused_with_the_mend():
    for bits in (1, 13):
        with pytest.raises(FedloraError, match=rf"link.gradient_bits is {bits}.*2 to 12"):
            LinkConfig(gradient="rotated", gradient_bits=bits)
    with pytest.raises(FedloraError, match=r"link.group is 100; choose one of 16"):
        LinkConfig(group=100)
    choice = LinkConfig(gradient="int8", gradient_bits=4).codec("gradient")
    with pytest.raises(FedloraError, match=r"gradient_bits is 4.*int8.*set link.gradient to rot"):
        create_codec(**choice)


@pytest.mark.parametrize("name", ["rotated", "entropy"])
def test_what_is_kept_of_senders_seeds_is_bounded(name):
    """Each payload may name another seed: what is kept for all of them would grow without end."""
    x, codec = random(2, 128), create_codec(name)
    kept = rotation._signs.cache_info
    for seed in range(200):
        written = pack("z", x, create_codec(name, seed=seed))
        assert torch.allclose(unpack(written, "z", codec, (2, 128)), x, atol=6)
    assert kept().currsize <= 64
