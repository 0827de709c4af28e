"""Rows that were written before are written as what is left: the same is read, in fewer bits."""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest
import torch

from fedlora.errors import ProtocolError
from fedlora.link import (
    KeptLevels,
    Levels,
    huffman,
    levels_bytes,
    pack,
    pack_beside,
    unpack,
    unpack_beside,
)
from fedlora.link.entropy import EntropyCodec
from fedlora.link.rotated import RotatedCodec

LEFT = ".ent1-b4-g128-s0-r"


def gaussian(rows: int, width: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def nbits(parts: dict[str, torch.Tensor]) -> int:
    return sum(8 * part.nbytes for part in parts.values())


def levels(codec: EntropyCodec, x: torch.Tensor) -> Levels:
    return codec.encode_beside(x, Levels.unknown(len(x), codec.remembers(x.shape[1])))[1]


def some(known: Levels, which: list[bool]) -> Levels:
    steps = torch.where(torch.tensor(which), known.steps, -1.0)
    return Levels(known.numbers, steps)


@pytest.mark.parametrize("width", [64, 100, 128, 192])
@pytest.mark.parametrize(
    "which", [[False] * 6, [True] * 6, [True, False, False, True, True, False]]
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 40.0])
def test_what_is_read_is_what_is_read_of_the_whole_whatever_was_known(width, which, size):
    codec, x = EntropyCodec(4), gaussian(6, width)
    known = some(levels(codec, size * x + gaussian(6, width, 1)), which)
    parts, sent = codec.encode_beside(x, known)
    found, read = codec.decode_beside(parts, (6, width), known)
    assert torch.equal(found, codec.decode(codec.encode(x), (6, width)))
    assert torch.equal(sent.numbers, read.numbers) and torch.equal(sent.steps, read.steps)
    assert (LEFT in parts) == any(which) and (".based" in parts) == (any(which) and not all(which))


@pytest.mark.parametrize(("rho", "bits"), [(0.3, 3.8), (0.07, 2.7)])
def test_what_is_left_takes_the_bits_of_its_entropy(rho, bits):
    """Of a share rho of the energy: log2(1 / rho) / 2 bits fewer, but for what rounding leaves."""
    codec, x = EntropyCodec(4.7), gaussian(300)
    before = x + rho**0.5 * gaussian(300, seed=1)
    parts, _ = codec.encode_beside(x, levels(codec, before))
    assert nbits(parts) / x.numel() == pytest.approx(bits, abs=0.15)
    assert nbits(codec.encode(x)) / x.numel() == pytest.approx(4.7, abs=0.1)


def test_levels_that_foretell_nothing_cost_nothing_to_speak_of():
    codec, x = EntropyCodec(4), gaussian(100)
    for before in (gaussian(100, seed=1), -x, torch.zeros(100, 128), 1e-20 * x, 1e20 * x):
        parts, _ = codec.encode_beside(x, levels(codec, before))
        assert nbits(parts) < 1.01 * nbits(codec.encode(x))


@pytest.mark.filterwarnings("error")
def test_rows_that_were_larger_by_more_than_fp32_holds_foretell_nothing_and_warn_of_nothing():
    codec, x = EntropyCodec(4), 1e-12 * gaussian(20)
    before = Levels(torch.ones(20, 128, dtype=torch.int8), torch.full((20,), 1e30))
    for known in (before, Levels(-before.numbers, before.steps), levels(codec, 1e30 * x.sign())):
        parts, sent = codec.encode_beside(x, known)
        found, read = codec.decode_beside(parts, (20, 128), known)
        assert torch.equal(found, codec.decode(codec.encode(x), (20, 128)))
        assert torch.equal(sent.numbers, read.numbers)


def test_the_same_again_takes_hardly_a_bit_and_zeros_stay_zeros():
    codec, x = EntropyCodec(4), gaussian(50)
    parts, _ = codec.encode_beside(x, levels(codec, x))
    assert nbits(parts) / x.numel() < 1.05  # a code of deflate's takes one for each
    parts, sent = codec.encode_beside(torch.zeros(50, 128), levels(codec, x))
    assert not codec.decode_beside(parts, (50, 128), levels(codec, x))[0].any()
    assert not sent.numbers.any()


def test_what_is_not_known_is_refused_and_so_is_what_no_codec_writes():
    codec, x = EntropyCodec(4), gaussian(3)
    known = levels(codec, x)
    parts, _ = codec.encode_beside(x, known)
    mixed, _ = codec.encode_beside(x, some(known, [True, False, True]))
    nothing = Levels.unknown(3, 128)
    one = torch.zeros(1, dtype=torch.bfloat16)
    ill = [
        (parts, nothing, "rows that are not known here"),
        (parts, Levels.unknown(3, 0), "rows that are not known here"),
        (mixed, some(known, [True, False, False]), "rows that are not known here"),
        (parts | {".slope": one - 1}, known, "a bfloat16 from 0"),
        (parts | {".slope": one + 3}, known, "a slope of 3"),
        (parts | {".slope": one * torch.nan}, known, "a slope of nan"),
        (parts | {".step": one + torch.inf}, known, "a step of inf"),
        (parts | {".based": torch.zeros(1, dtype=torch.uint8)}, known, "both sides must name one"),
        (mixed | {".based": torch.zeros(2, dtype=torch.uint8)}, known, "a bit for each"),
        (mixed | {".based": torch.zeros(1)}, known, "a bit for each"),
        ({n: p for n, p in mixed.items() if n != ".based"}, known, "both sides must name one"),
        (parts | {LEFT: parts[LEFT][:-9]}, known, r"Huffman|expected 384 levels"),
        (parts | {LEFT.replace("s0", "s1"): parts[LEFT]}, known, "both sides must name one"),
        (mixed | {LEFT: mixed[LEFT.replace("-r", "")]}, known, "expected 256 levels"),
    ]
    for sent, own, words in ill:
        with pytest.raises(ProtocolError, match=words):
            codec.decode_beside(sent, (3, 128), own)
    with pytest.raises(ProtocolError, match="rows that are not known here"):
        codec.decode(parts, (3, 128))


def test_a_level_beyond_the_last_is_refused_though_bytes_wrap():
    """What is left is added modulo 256, and 255 is no level."""
    last = Levels(torch.full((1, 128), 127, dtype=torch.int8), torch.ones(1))
    one = torch.ones(1, dtype=torch.bfloat16)

    def parts(left: int) -> dict[str, torch.Tensor]:
        stream = torch.from_numpy(huffman.write(np.full(128, left, np.uint8)))
        return {LEFT: stream, ".step": one, ".slope": one}

    x, sent = EntropyCodec(4).decode_beside(parts(2), (1, 128), last)
    assert bool((sent.numbers == -127).all()) and x[0, 0].abs() == 127  # 127 + 2 is 129 - 256
    with pytest.raises(ProtocolError, match="a level beyond 254"):
        EntropyCodec(4).decode_beside(parts(1), (1, 128), last)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", [EntropyCodec(4), RotatedCodec(4)])
def test_numbers_whose_sums_overflow_are_refused_and_warn_of_nothing(codec):
    x = 3e38 * gaussian(2).sign()
    for tensors in (pack("z", x, codec), pack("z", x, codec, bytes(32))):
        with pytest.raises(ProtocolError, match="NaN or infinity"):
            unpack(tensors, "z", codec, (2, 128))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_and_not_remembered(bad):
    codec, x = EntropyCodec(4), gaussian(2)
    known = levels(codec, x)
    x[1, 3] = bad
    tensors, sent = pack_beside("z", x, codec, known)
    assert not sent.known.any()
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        unpack_beside(tensors, "z", codec, (2, 128), known)


def test_narrow_rows_are_rotated_together_and_never_left():
    assert EntropyCodec(4).remembers(19) == 0 and EntropyCodec(4).remembers(100) == 128


def kept(limit: int = 10**6) -> KeptLevels:
    found = KeptLevels(limit)
    found.keep([7, 9], [2, 1], levels(EntropyCodec(4), gaussian(3)))
    return found


def test_what_the_other_end_has_lost_or_has_otherwise_is_taken_as_unknown():
    own, told = kept(), kept().digests([7, 9, 8])
    assert told[2] == 0 and bool(told[:2].all())
    assert own.find([7, 9], [2, 1], 128, told[:2]).known.tolist() == [True] * 3
    assert own.find([7, 9], [2, 1], 128, told[[0, 2]]).known.tolist() == [True, True, False]
    assert own.find([7, 9], [2, 1], 128, told[[1, 0]]).known.tolist() == [False] * 3
    assert own.find([7, 9], [1, 1], 128, None).known.tolist() == [False, True]
    assert own.find([7, 9], [2, 1], 64, None).known.tolist() == [False] * 3
    assert own.find([8], [2], 128, torch.zeros(1, dtype=torch.int32)).known.tolist() == [False] * 2


def test_a_flipped_bit_is_another_digest():
    own, told = kept(), kept().digests([7, 9])
    own._own[9] = own._own[9][:-1] + bytes([own._own[9][-1] ^ 1])
    assert (own.digests([7, 9]) == told).tolist() == [True, False]
    own._own[7] = bytes([own._own[7][0] ^ 1]) + own._own[7][1:]  # the lowest bit of a step
    assert not (own.digests([7]) == told[:1]).any()


def test_the_bound_holds_and_a_sample_that_fits_stays():
    own = kept(limit=levels_bytes(2, 128) + levels_bytes(1, 128) - 1)
    assert own.nbytes == levels_bytes(2, 128)
    assert own.digests([7, 9]).bool().tolist() == [True, False]
    again = levels(EntropyCodec(4), gaussian(3, seed=1))
    own.keep([7, 9], [2, 1], again)
    found = own.find([7], [2], 128, None)
    assert own.nbytes == levels_bytes(2, 128) and torch.equal(found.numbers, again.numbers[:2])
    own.keep([7], [2], Levels.unknown(2, 128))
    assert own.nbytes == 0 and not own.digests([7]).any()


@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_counted_is_what_it_takes_in_memory(rows):
    """Identifiers are numbers of 62 bits, which take more than small ones."""
    one = Levels(torch.ones(rows, 128, dtype=torch.int8), torch.ones(rows))
    own = KeptLevels(1 << 30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(4000):
            own.keep([(1 << 61) + 7919 * number], [rows], one)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * own.nbytes < taken <= own.nbytes == 4000 * levels_bytes(rows, 128)


def test_rows_of_another_width_are_other_rows():
    own, narrow = kept(), levels(EntropyCodec(4), gaussian(2, width=64))
    own.keep([7], [2], narrow)
    assert own.nbytes == levels_bytes(2, 64) and not own.digests([9]).any()
    assert torch.equal(own.find([7], [2], 64, None).numbers, narrow.numbers)


def test_its_state_comes_back_and_is_its_own_memory():
    own = kept()
    state = copy.deepcopy(own.state_dict())
    other = KeptLevels(10**6)
    other.load_state_dict(state)
    assert other.nbytes == own.nbytes
    assert np.array_equal(other.digests([7, 9]), own.digests([7, 9]))
    for part in state.values():
        part.zero_()
    assert np.array_equal(other.digests([7, 9]), own.digests([7, 9]))
    empty = KeptLevels(10)
    empty.load_state_dict(KeptLevels(10).state_dict())
    assert empty.nbytes == 0
