"""Try a codec on what crosses a cut and on what a hostile peer sends, and say what is wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from fedlora.errors import ProtocolError, described
from fedlora.link.codec import Codec, RememberingCodec
from fedlora.link.frame import Frame, decode_frame, encode_frame
from fedlora.link.levels import Levels
from fedlora.machine import stretch
from fedlora.plugin_finding import PluginFinding, first_findings

_WIDTH = 24
_DRAWS = 400
_SIGMAS = 6.0  # by which a mean of draws may be off before it is called biased
_MOST_BYTES = 1 << 23
_LARGER = 1.05  # as rounding at random makes single rows
_BATCH, _SLOW_S = (1024, 256), 1.0

Parts = Mapping[str, torch.Tensor]


def check_codec(make: Callable[[], object]) -> list[str]:
    """Try a codec: what it writes, what it reads of that, and what it makes of other bytes.

    Parameters
    ----------
    make
        The class, or what returns a new codec each time; both ends of a link make their own.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the codec. How much it loses is not judged, only
        that rows come out nearer to themselves than zeros are, and no larger.
    """
    try:
        codec, other = make(), make()
    except (Exception, SystemExit) as error:
        return [f"it cannot be made ({described(error)}); expected a codec"]
    if not (isinstance(codec, Codec) and isinstance(other, Codec)):
        return [f"{codec!r:.80} is no codec; give a class that inherits from Codec"]
    parts = (_written, _read, _drawn, _remembered, _hostile, _near, _pace)
    return first_findings(partial(part, codec, other) for part in parts)


def _batches() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a cut carries, each with its name."""
    drawn = torch.randn(7, _WIDTH, generator=torch.Generator().manual_seed(1))
    yield "one row", drawn[:1]
    yield "seven rows", drawn
    yield "zeros", torch.zeros(3, _WIDTH)
    yield "equal rows", drawn[:1].repeat(5, 1)
    yield "an outlier", drawn.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(1e4))
    yield "rows of 1e-30", drawn * 1e-30
    yield "rows of 1e30", drawn * 1e30
    yield "a slice of a larger tensor", torch.cat([drawn, drawn], 1)[:, ::2]
    yield "one column", drawn[:, :1]
    yield "no row", drawn[:0]


def _written(codec: Codec, other: Codec) -> Iterator[str]:
    for name, x in _batches():
        before, parts = x.clone(), _encode(codec, x, name)
        if not torch.equal(before, x):
            yield f"encode has changed its input ({name}); expected that it copies what it changes"
        again, theirs = _encode(codec, x, name), _encode(other, x, name)
        if not (_same(parts, again) and _same(parts, theirs)):
            yield (
                f"encode writes other bytes of {name} the second time or in another process; "
                "expected the same, as a message that is lost is sent again"
            )


def _pace(codec: Codec, other: Codec) -> Iterator[str]:
    """Time a batch as large as a step's: all clients wait for it."""
    x, began = torch.randn(*_BATCH, generator=torch.Generator().manual_seed(2)), time.monotonic()
    _decode(other, _carried(_encode(codec, x, "a batch"), "a batch"), _BATCH, "a batch")
    took_s = time.monotonic() - began
    if took_s > _SLOW_S * stretch():
        yield (
            f"encode and decode take {took_s:.1f} s for {_BATCH[0]} rows of {_BATCH[1]} numbers; "
            f"expected under {_SLOW_S:g} s, as every step waits for them"
        )


def _encode(codec: Codec, x: torch.Tensor, name: str, key: bytes | None = None) -> Parts:
    way = "encode" if key is None else "encode_drawn"
    try:
        parts = codec.encode(x) if key is None else codec.encode_drawn(x, key)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"{way} raised {described(error)} for {name}; expected parts by suffix"
        ) from error
    if not isinstance(parts, dict) or not parts:
        raise PluginFinding(f"{way} returned {parts!r:.60} for {name}; expected a dict of tensors")
    for suffix, part in parts.items():
        if not isinstance(suffix, str) or (suffix and not suffix.startswith(".")):
            raise PluginFinding(
                f"{way} names a part {suffix!r:.40}; expected '' or a dot and a name"
            )
        if not isinstance(part, torch.Tensor) or part.layout != torch.strided:
            raise PluginFinding(
                f"{way} gave {part!r:.40} as part {suffix!r}; expected a dense tensor"
            )
    return parts


def _carried(parts: Parts, name: str) -> Parts:
    """Return parts as they come out of a frame."""
    try:
        sent = encode_frame(
            Frame("check", tensors={f"x{suffix}": p for suffix, p in parts.items()})
        )
        found = decode_frame(sent, _MOST_BYTES).tensors
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"no frame carries the parts of {name} ({described(error)}); expected tensors of a "
            "dtype that safetensors has"
        ) from error
    return {suffix[1:]: part for suffix, part in found.items()}


def _decode(codec: Codec, parts: Parts, shape: tuple[int, int], name: str) -> torch.Tensor:
    try:
        x = codec.decode(parts, shape)
    except (Exception, SystemExit) as error:
        raise PluginFinding(
            f"decode raised {described(error)} for its own parts of {name}; expected a tensor"
        ) from error
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or tuple(x.shape) != shape:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise PluginFinding(
            f"decode returned {what:.80} for {name}; expected fp32 of shape {shape}"
        )
    return x


def _read(codec: Codec, other: Codec) -> Iterator[str]:
    for name, x in _batches():
        shape = (int(x.shape[0]), int(x.shape[1]))
        parts = _carried(_encode(codec, x, name), name)
        found = _decode(other, dict(list(parts.items())[::-1]), shape, name)
        if not torch.equal(found, _decode(codec, parts, shape, name)):
            yield f"two codecs read the same bytes of {name} otherwise; expected equal tensors"
        if not torch.isfinite(found).all():
            yield f"decode gives what is not finite for {name}; expected finite numbers"


def _near(codec: Codec, other: Codec) -> Iterator[str]:
    """Hold what is read against what was written: nearer than zeros are, and no larger."""
    x = dict(_batches())["seven rows"]
    shape = (int(x.shape[0]), int(x.shape[1]))
    parts = _carried(_encode(codec, x, "seven rows"), "seven rows")
    found = _decode(other, parts, shape, "seven rows")
    away, along = float((found - x).norm() / x.norm()), float((found * x).sum() / x.square().sum())
    if not (away < 1 and along <= _LARGER):
        yield (
            f"what decode reads is {away:.2g} of the rows' length away from them, and {along:.2g} "
            "times as long in their direction; expected under 1, and no longer than they are"
        )


def _drawn(codec: Codec, other: Codec) -> Iterator[str]:
    """Hold ``encode_drawn`` to its word: the same for the same key, and right on average."""
    x = dict(_batches())["seven rows"]
    shape = (int(x.shape[0]), int(x.shape[1]))
    keys = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(_DRAWS)]
    first = _encode(codec, x, "seven rows", keys[0])
    if not _same(first, _encode(other, x, "seven rows", keys[0])):
        yield "encode_drawn writes other bytes for the same key; expected that the key decides"
        return
    if _same(first, _encode(codec, x, "seven rows")):
        return  # it does not round at random, and does not say that it does
    drawn = [_decode(codec, _encode(codec, x, "seven rows", k), shape, "seven rows") for k in keys]
    values = torch.stack(drawn).double()
    error = (values.mean(0) - x.double()).abs()
    allowed = _SIGMAS * values.std(0) / len(keys) ** 0.5 + 1e-5 * x.abs().max()
    if bool((error > allowed).any()):
        worst = float((error - allowed).max())
        yield (
            f"the mean of {len(keys)} draws of encode_drawn is off by {worst:.2g} more than chance "
            "allows; expected no bias, as gradients are added up over steps"
        )


def _remembered(codec: Codec, other: Codec) -> Iterator[str]:
    """Hold a codec that remembers to its word: it reads the same, whatever was known."""
    if not isinstance(codec, RememberingCodec) or not isinstance(other, RememberingCodec):
        return
    wide = torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    for name, x in (*_batches(), ("rows of 64 numbers", wide)):
        try:
            yield from _remembered_of(name, x, codec, other)
        except (Exception, SystemExit) as error:
            yield (
                f"encode_beside or decode_beside raised {described(error)} for {name}; expected "
                "parts, and what they stand for"
            )


def _remembered_of(
    name: str, x: torch.Tensor, codec: RememberingCodec, other: RememberingCodec
) -> Iterator[str]:
    shape, numbers = (len(x), int(x.shape[1])), codec.remembers(x.shape[1])
    if not numbers:
        return
    nothing = Levels.unknown(shape[0], numbers)
    whole = _decode(other, _encode(codec, x, name), shape, name)
    _, before = codec.encode_beside(x.flip(0), nothing)
    some = torch.where(torch.arange(shape[0]) % 2 == 0, before.steps, nothing.steps)
    for known in (nothing, before, Levels(before.numbers, some)):
        parts, sent = codec.encode_beside(x, known)
        found, read = other.decode_beside(_carried(parts, name), shape, known)
        if not torch.equal(found, whole):
            yield (
                f"what decode_beside reads of {name} depends on what was known before; expected "
                "what decode reads"
            )
        if not (torch.equal(sent.numbers, read.numbers) and torch.equal(sent.steps, read.steps)):
            yield (
                f"encode_beside and decode_beside remember other levels of {name}; expected the "
                "same at both ends"
            )


def _hostile(codec: Codec, _: Codec) -> Iterator[str]:
    """Give ``decode`` what a peer may send in place of its parts."""
    x = dict(_batches())["seven rows"]
    shape = (int(x.shape[0]), int(x.shape[1]))
    parts = dict(_encode(codec, x, "seven rows"))
    for what, sent, told in _altered(parts, shape):
        try:
            found = codec.decode(sent, told)
        except ProtocolError:
            continue
        except (Exception, SystemExit) as error:
            yield f"decode raised {described(error)} for {what}; expected a ProtocolError"
            continue
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != told:
            yield f"decode returned another shape than it was told for {what}; expected {told}"
        elif what.startswith(("no ", "another dtype", "a part too many")):
            yield f"decode takes {what}; expected a ProtocolError"


def _altered(parts: Parts, shape: tuple[int, int]) -> Iterator[tuple[str, Parts, tuple[int, int]]]:
    yield "no part at all", {}, shape
    yield "a part too many", {**parts, ".further": torch.zeros(1)}, shape
    for suffix, part in parts.items():
        said = f"part {suffix!r}"
        rest = {name: own for name, own in parts.items() if name != suffix}
        yield f"no {said}", rest, shape
        kind = torch.float64 if part.dtype != torch.float64 else torch.float32
        yield f"another dtype of {said}", {**rest, suffix: part.to(kind)}, shape
        yield f"a shorter {said}", {**rest, suffix: part.flatten()[:-1]}, shape
        yield f"an empty {said}", {**rest, suffix: part.flatten()[:0]}, shape
        yield f"a deeper {said}", {**rest, suffix: part[None, None]}, shape
        if part.is_floating_point():
            yield f"infinity in {said}", {**rest, suffix: torch.full_like(part, torch.inf)}, shape
        else:
            yield f"ones in {said}", {**rest, suffix: torch.full_like(part, 1)}, shape
    yield "a row less than was told", parts, (shape[0] + 1, shape[1])
    yield "a column less than was told", parts, (shape[0], shape[1] + 1)


def _same(one: Parts, other: Parts) -> bool:
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and torch.equal(a, other[name]) for name, a in one.items()
    )
