"""A codec that breaks its word is named with what was expected; the shipped ones break none."""

from __future__ import annotations

import pytest
import torch

from fedlora.errors import ProtocolError
from fedlora.link import Codec, Fp32Codec, Levels, create_codec
from fedlora.link.check import check_codec
from fedlora.link.codec import Bf16Codec, Int8Codec
from fedlora.link.entropy import EntropyCodec


class Halves(Codec):
    """fp16 with its range kept by a scale a row: what a stranger would write."""

    def encode(self, x):
        scale = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-38)
        return {".half": (x.float() / scale).half(), ".scale": scale}

    def decode(self, parts, shape):
        if parts.keys() != {".half", ".scale"}:
            raise ProtocolError("other parts than .half and .scale")
        half, scale = parts[".half"], parts[".scale"]
        if (half.dtype, tuple(half.shape)) != (torch.float16, shape):
            raise ProtocolError("halves of another shape or dtype")
        if (scale.dtype, tuple(scale.shape)) != (torch.float32, (shape[0], 1)):
            raise ProtocolError("scales of another shape or dtype")
        return half.float() * scale


@pytest.mark.parametrize(
    "make",
    [Fp32Codec, Bf16Codec, Int8Codec, Halves, EntropyCodec, *(
        lambda bits=bits: create_codec("rotated", bits=bits) for bits in (2, 5, 8)
    )],
    ids=["fp32", "bf16", "int8", "halves", "entropy", "rotated-2", "rotated-5", "rotated-8"],
)  # fmt: skip
def test_nothing_speaks_against_a_sound_codec(make):
    assert check_codec(make) == []


class Needs(Halves):
    def __init__(self, levels):
        self.levels = levels


class Unfinished(Codec):
    def encode(self, x):
        return {}


class Scales(Halves):
    def encode(self, x):
        return super().encode(x.div_(2))


class Random(Halves):
    def encode(self, x):
        return super().encode(x + 1e-3 * torch.rand_like(x))


class Lists(Halves):
    def encode(self, x):
        return x.tolist()


class Exits(Halves):
    def decode(self, parts, shape):
        raise SystemExit(0)


class Sparse(Halves):
    def encode(self, x):
        return {".half": x.to_sparse()}


class Quantised(Halves):
    def encode(self, x):
        return {".half": x.to(torch.quint8) if x.is_quantized else torch.quantize_per_tensor(
            x.float(), 0.1, 0, torch.quint8
        )}  # fmt: skip


class Overflows(Fp32Codec):
    dtype = torch.float16


class Forgets(Halves):
    def decode(self, parts, shape):
        return super().decode(parts, shape)[:, :-1]


class Wide(Halves):
    def decode(self, parts, shape):
        return super().decode(parts, shape).double()


class Biased(Halves):
    def encode_drawn(self, x, key):
        torch.manual_seed(int.from_bytes(key[:7], "big"))
        return self.encode(x + 0.1 * torch.rand_like(x))


class Keyless(Halves):
    def encode_drawn(self, x, key):
        return self.encode(x + 0.1 * (torch.rand_like(x) - 0.5))


class Trusting(Halves):
    def decode(self, parts, shape):
        return parts[".half"].float() * parts[".scale"]


class Guesses(Halves):
    def decode(self, parts, shape):
        if ".scale" not in parts:
            return torch.zeros(shape)
        return super().decode(parts, shape)


class Triples(Halves):
    def decode(self, parts, shape):
        return 3 * super().decode(parts, shape)


class Mirrors(Halves):
    def decode(self, parts, shape):
        return super().decode(parts, shape).flip(0)


class Nothing(Halves):
    def decode(self, parts, shape):
        return 0 * super().decode(parts, shape)


class Drifts(EntropyCodec):
    """Differences to what was read before, which are rounded anew: errors add up."""

    def decode_beside(self, parts, shape, known):
        x, levels = super().decode_beside(parts, shape, known)
        return (x * 1.001 if known.known.any() else x), levels


class Misremembers(EntropyCodec):
    def encode_beside(self, x, known):
        parts, levels = super().encode_beside(x, known)
        return parts, Levels(levels.numbers + 1, levels.steps)


class Unread(EntropyCodec):
    def decode_beside(self, parts, shape, known):
        return self.decode(parts, shape), known


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Needs, "it cannot be made (TypeError"),
        (Unfinished, "it cannot be made (TypeError"),
        (dict, "is no codec; give a class that inherits from Codec"),
        (Scales, "encode has changed its input (one row)"),
        (Random, "encode writes other bytes of one row the second time"),
        (Lists, "encode returned"),
        (Exits, "decode raised SystemExit"),
        (Sparse, "as part '.half'; expected a dense tensor"),
        (Quantised, "no frame carries the parts of one row"),
        (Overflows, "decode gives what is not finite for rows of 1e30"),
        (Forgets, "decode returned torch.float32 of shape (1, 23) for one row; expected fp32"),
        (Wide, "decode returned torch.float64"),
        (Biased, "draws of encode_drawn is off by"),
        (Keyless, "encode_drawn writes other bytes for the same key"),
        (Drifts, "depends on what was known before; expected what decode reads"),
        (Misremembers, "remember other levels of rows of 64 numbers; expected the same"),
        (Unread, "remember other levels of rows of 64 numbers; expected the same"),
        (Trusting, "decode raised KeyError"),
        (Triples, "is 2 of the rows' length away from them, and 3 times as long"),
        (Mirrors, "of the rows' length away from them"),
        (Nothing, "is 1 of the rows' length away from them, and 0 times as long"),
        (Guesses, "decode takes no part at all; expected a ProtocolError"),
    ],
)
def test_a_broken_codec_is_named_with_what_was_expected(make, words):
    findings = check_codec(make)
    assert findings and words in findings[0], findings
    assert all("expected" in text or "give" in text for text in findings)
    assert not any("\n" in text for text in findings)
