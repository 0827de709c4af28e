from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora.privacy.mechanisms import SystemNoise, noise as module
from fedlora.privacy.mechanisms.noise import KeyStreamNoise


class FixedKey(KeyStreamNoise):
    secret = False

    def _key(self) -> bytes:
        return bytes(range(32))


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (40_001,)])
def test_the_shape_is_the_one_that_was_asked_for(shape: tuple[int, ...]) -> None:
    drawn = SystemNoise().standard_normal(shape)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float64
    assert drawn.isfinite().all()


def test_the_key_stream_is_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: zero key, zero nonce, counter 0
    class Zero(FixedKey):
        def _key(self) -> bytes:
            return bytes(32)

    block = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")
    expected = torch.empty(2, dtype=torch.float64)
    module._box_muller(block, expected)
    assert torch.equal(Zero().standard_normal((2,)), expected)


def test_numbers_follow_box_and_muller() -> None:
    words = np.array([1 << 63, 1 << 20, 3 << 61, 1 << 62], dtype="<u8")
    out = torch.empty(4, dtype=torch.float64)
    module._box_muller(words.tobytes(), out)
    radius = np.sqrt(-2 * np.log(words[:2] / 2.0**64))
    angle = 2 * math.pi * words[2:] / 2.0**64
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("word", [b"\x00" * 8, b"\xff" * 8])
def test_the_extreme_words_give_finite_numbers(word: bytes) -> None:
    out = torch.empty(2, dtype=torch.float64)
    module._box_muller(word + bytes(8), out)
    assert out.isfinite().all()
    assert out.abs().max() <= math.sqrt(2 * 64 * math.log(2)) + 1e-12


def test_blocks_of_the_stream_do_not_repeat() -> None:
    drawn = FixedKey().standard_normal((4 * module._BLOCK,)).view(4, -1)
    correlation = np.corrcoef(drawn.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 6.5 / math.sqrt(module._BLOCK)


def test_a_million_numbers_are_standard_gaussian() -> None:
    drawn = SystemNoise().standard_normal((1_000_000,)).numpy()
    assert stats.kstest(drawn, "norm").pvalue > 1e-9
    tail = int((np.abs(drawn) > 4).sum())
    expected = 2 * stats.norm.sf(4) * len(drawn)
    assert 1e-9 < stats.poisson.cdf(tail, expected) < 1 - 1e-9


def test_a_forked_process_draws_other_noise() -> None:
    source = SystemNoise()
    source.standard_normal((4,))
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, source.standard_normal((4,)).numpy().tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(receive, 32))
    assert not np.allclose(theirs, source.standard_normal((4,)).numpy())
