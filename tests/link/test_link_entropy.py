"""``entropy``: one step for a payload; unbiased, bounded, exact to read, and checked when read."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import create_codec, pack, unpack
from fedlora.link.entropy import EntropyCodec
from fedlora.link.rotated import RotatedCodec
from fedlora.link.rotation import Rotation

PART = ".ent1-b4-g128-s0"


def gaussian(rows: int, width: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def nbits(parts: dict[str, torch.Tensor]) -> int:
    return sum(8 * part.nbytes for part in parts.values())


@pytest.mark.parametrize("bits", [2, 3.5, 6])
def test_a_gaussian_takes_about_the_bits_that_are_asked_for(bits):
    parts = EntropyCodec(bits).encode(gaussian(200))
    assert nbits(parts) / 25600 == pytest.approx(bits, abs=0.25)


@pytest.mark.parametrize("bits", [2, 3.5, 6])
def test_a_rotated_number_is_off_by_at_most_half_a_step(bits):
    x, codec = gaussian(7), EntropyCodec(bits)
    parts = codec.encode(x)
    off = Rotation(7, 128, 128).forward(codec.decode(parts, (7, 128)) - x, 0).abs().max()
    assert off <= float(parts[".step"]) * (0.5 + 1e-4)


def test_what_is_rounded_at_random_has_the_mean_of_what_was_sent():
    x, codec, draws = gaussian(3, 64), EntropyCodec(2), 3000
    total = torch.zeros(3, 64, dtype=torch.float64)
    for draw in range(draws):
        total += codec.decode(codec.encode_drawn(x, draw.to_bytes(32, "big")), (3, 64)).double()
    step = float(codec.encode(x)[".step"])
    error = (total / draws - x) / (step / 2 / math.sqrt(64 * draws))
    assert float(error.abs().max()) < 5 and float(error.square().mean()) < 1.2


def test_rows_of_many_sizes_take_fewer_bits_than_with_a_scale_each_at_one_error():
    """As gradients of tokens that a model is sure of, and of those that it is not."""
    x = gaussian(256) * torch.logspace(-2, 0, 256)[:, None]

    def error(codec: EntropyCodec | RotatedCodec, parts: dict[str, torch.Tensor]) -> float:
        return float((codec.decode(parts, (256, 128)) - x).square().sum())

    rotated, entropy = RotatedCodec(4), EntropyCodec(3.5)
    first, second = rotated.encode(x), entropy.encode(x)
    assert error(entropy, second) < error(rotated, first)
    assert nbits(second) < 0.8 * nbits(first)


@pytest.mark.parametrize("width", [1, 2, 19, 48, 100, 128, 192, 640])
def test_every_width_comes_back(width):
    x, codec = gaussian(5, width), EntropyCodec(6)
    assert torch.allclose(codec.decode(codec.encode(x), (5, width)), x, atol=0.1)


def test_zeros_stay_zeros_no_rows_are_none_and_no_size_matters():
    codec = create_codec("entropy")
    assert not codec.decode(codec.encode(torch.zeros(2, 128)), (2, 128)).any()
    assert codec.decode(codec.encode(torch.zeros(0, 128)), (0, 128)).shape == (0, 128)
    x = gaussian(4)
    for scale in (1e-25, 1e30):
        back = codec.decode(codec.encode(x * scale), (4, 128)) / scale
        assert torch.allclose(back, codec.decode(codec.encode(x), (4, 128)), atol=0.15)


def test_one_row_far_larger_than_the_others_is_not_cut_off():
    x = gaussian(400)
    x[0] *= 1e4
    codec = EntropyCodec(3)
    back = codec.decode(codec.encode(x), (400, 128))
    assert torch.allclose(back[0], x[0], rtol=0, atol=float(x[0].abs().max()) / 50)


def test_the_same_bytes_give_the_tensor_that_they_gave_on_another_machine():
    levels = np.arange(128, dtype=np.uint8) + 63
    huffman = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    stream = huffman.compress(levels.tobytes()) + huffman.flush()
    parts = {
        PART: torch.from_numpy(np.frombuffer(bytearray(stream), np.uint8)),
        ".step": torch.tensor([0.375], dtype=torch.bfloat16),
    }
    read = EntropyCodec(4).decode(parts, (1, 128))
    want = Rotation(1, 128, 128).back(
        torch.tensor(_hadamard(128) @ (levels.astype(float) - 127) * 0.375 / 128).float(), 0
    )
    assert torch.equal(read, want)


def _hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({".step": torch.tensor([-1.0], dtype=torch.bfloat16)}, "a bfloat16 from 0"),
        ({".step": torch.tensor([1.0])}, "a bfloat16 from 0"),
        ({PART: torch.zeros(9)}, "a line of uint8"),
        ({PART: torch.zeros(9, dtype=torch.uint8)}, "Huffman|expected 256 levels"),
        ({".more": torch.zeros(1)}, "both sides must name one codec"),
    ],
)
def test_what_no_codec_writes_is_refused(change, words):
    codec = EntropyCodec(4)
    parts = codec.encode(gaussian(2)) | change
    with pytest.raises(ProtocolError, match=words):
        codec.decode(parts, (2, 128))


@pytest.mark.parametrize("other", [EntropyCodec(3), EntropyCodec(4, 64)])
def test_another_profile_is_refused(other):
    with pytest.raises(ProtocolError, match="same bits and group"):
        EntropyCodec(4).decode(other.encode(gaussian(2)), (2, 128))


def test_a_stream_that_grows_without_end_is_read_no_further_than_it_may():
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = zeros.compress(bytes(1 << 24)) + zeros.flush()
    parts = EntropyCodec(4).encode(gaussian(2))
    parts[PART] = torch.from_numpy(np.frombuffer(bytearray(bomb), np.uint8))
    with pytest.raises(ProtocolError, match="expected 256 levels"):
        EntropyCodec(4).decode(parts, (2, 128))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    x = gaussian(2)
    x[1, 3] = bad
    codec = EntropyCodec(4)
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        unpack(pack("gradient", x, codec), "gradient", codec, (2, 128))


def test_what_it_cannot_do_is_refused_with_the_mend():
    with pytest.raises(FedloraError, match="entropy was given 7 bits; give it 2 to 6"):
        create_codec("entropy", bits=7)
    with pytest.raises(FedloraError, match="choose another codec, such as rotated"):
        create_codec("entropy", key="link.activation")
