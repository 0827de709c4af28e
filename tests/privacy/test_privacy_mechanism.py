from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import InsecureNoise, SystemNoise, clip_rows, release, rounding_step
from fedlora.privacy.plan import check_classes
from fedlora.scenarios import find_scenario

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
C = 0.05


def square_norm(x: torch.Tensor) -> Fraction:
    """Exact squared norm, in rational arithmetic."""
    return sum((Fraction(value) ** 2 for value in x.double().flatten().tolist()), Fraction(0))


def adversarial(generator: torch.Generator, rows: int, width: int) -> list[torch.Tensor]:
    plain = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    spike = torch.zeros(rows, width, dtype=torch.float64)
    spike[-1, 0] = 1e4
    spread = torch.full((rows, width), C / math.sqrt(rows * width), dtype=torch.float64)
    scales = 10.0 ** torch.randint(-30, 30, (rows, 1), generator=generator).double()
    return [plain, spike, spread, spread * (1 + 1e-12), plain * scales, plain * 1e-40, spike * 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_no_gradient_is_longer_than_the_clipping_norm(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (7,), generator=generator).tolist()
    width = 11
    parts = [adversarial(generator, n, width)[i] for i, n in enumerate(lengths)]
    top = torch.finfo(dtype).max
    packed = torch.cat(parts).clamp(-top, top).to(dtype)
    for clip_norm in (C, 1.0, 1e-20, 1e20):
        clipped = clip_rows(packed, lengths, clip_norm)
        assert clipped.refused == 0
        for sample in clipped.values.split(lengths):
            assert square_norm(sample) <= Fraction(clip_norm) ** 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_keeps_the_direction_and_leaves_short_gradients_alone(dtype: torch.dtype) -> None:
    long = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    short = (long * 2.0**-10).to(dtype)
    clipped = clip_rows(torch.cat([long, short]), [3, 3], C)
    assert clipped.clipped == 1
    assert torch.equal(clipped.values[3:], short.double())
    expected = long.double() * C / long.double().norm()
    torch.testing.assert_close(clipped.values[:3], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_another_sample_in_its_place_moves_the_upload_by_at_most_twice_the_norm(unit: str) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths, width = [4, 1, 6], 5
    packed = torch.randn(11, width, generator=generator)
    before = clip_rows(packed, lengths, C, unit).values
    for other in adversarial(generator, 1, width):
        packed[4:5] = other.float()
        after = clip_rows(packed, lengths, C, unit).values
        difference = after - before
        assert square_norm(difference) <= Fraction(2 * C) ** 2
        assert not difference[:4].any()
        assert not difference[5:].any()


def test_a_samples_clipped_gradient_does_not_depend_on_what_it_is_packed_with() -> None:
    generator = torch.Generator().manual_seed(2)
    lengths, width = [3, 7, 1, 5], 6
    packed = torch.randn(16, width, generator=generator)
    together = clip_rows(packed, lengths, C).values.split(lengths)
    for sample, expected in zip(packed.split(lengths), together, strict=True):
        assert torch.equal(clip_rows(sample, [len(sample)], C).values, expected)


def test_a_token_is_clipped_on_its_own_where_that_is_the_unit() -> None:
    packed = torch.randn(9, 4, generator=torch.Generator().manual_seed(3)) * 10
    clipped = clip_rows(packed, [4, 5], C, "token")
    assert clipped.clipped == 9
    torch.testing.assert_close(
        clipped.values.norm(dim=1), torch.full((9,), C, dtype=torch.float64), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_a_gradient_that_is_not_finite_becomes_zero_and_is_counted(value: float, unit: str) -> None:
    packed = torch.full((5, 3), 0.001)
    packed[1, 2] = value
    clipped = clip_rows(packed, [2, 3], C, unit)
    assert clipped.refused == 1
    assert not clipped.values[1].any()
    assert bool(clipped.values[0].any()) == (unit == "token")
    assert torch.equal(clipped.values[2:], packed[2:].double())


def test_a_norm_that_overflows_becomes_zero() -> None:
    clipped = clip_rows(torch.full((2, 3), 1e308, dtype=torch.float64), [2], C)
    assert not clipped.values.any()
    assert clipped.refused == 1


@pytest.mark.parametrize("lengths", [[2, 2], [6], [5, 0], [7, -2], []])
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    with pytest.raises(FedloraError, match="pack the rows"):
        clip_rows(torch.zeros(5, 3), lengths, C)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_or_sigma_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(FedloraError, match="clip_norm is"):
        clip_rows(torch.zeros(1, 3), [1], value)
    with pytest.raises(FedloraError, match="sigma is"):
        release(torch.zeros(1, 3), [1], clip_norm=C, sigma=value, noise=SystemNoise())


def test_noise_is_gaussian_white_and_as_strong_as_stated() -> None:
    samples, rows, width, sigma = 20_000, 2, 3, 1.7
    gradient = torch.full((samples * rows, width), 100.0)
    released = release(gradient, [rows] * samples, clip_norm=C, sigma=sigma, noise=SystemNoise())
    expected = clip_rows(gradient[:rows], [rows], C).values.flatten()
    noise = released.values.double().view(samples, -1) - expected
    white = (noise / (sigma * C)).numpy()
    # each of these fails by chance less than once in 1e8 runs
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-9
    energy = (white**2).sum()
    assert 1e-9 < stats.chi2.cdf(energy, white.size) < 1 - 1e-9
    correlation = np.corrcoef(white.T)[np.triu_indices(rows * width, 1)]
    assert np.abs(correlation).max() < 6.5 / math.sqrt(samples)
    following = np.corrcoef(white[:-1].ravel(), white[1:].ravel())[0, 1]
    assert abs(following) < 6.5 / math.sqrt(white.size)


def test_releases_lie_on_a_public_grid_that_fp32_holds_exactly() -> None:
    sigma = 1.3
    step = rounding_step(sigma, C)
    assert sigma * C / 2048 < step <= sigma * C / 1024
    assert math.log2(step) == int(math.log2(step))
    for scale in (0.0, 1e-3, 1.0, 1e6):
        gradient = torch.randn(64, 16) * scale
        values = release(gradient, [4] * 16, clip_norm=C, sigma=sigma, noise=SystemNoise()).values
        assert values.dtype == torch.float32
        multiples = values.double() / step
        assert torch.equal(multiples, multiples.round())
        assert multiples.abs().max() < 2**24


def test_no_two_uploads_share_noise_whatever_seeds_are_set() -> None:
    gradient, uploads = torch.zeros(32, 64), []
    for _ in range(8):
        torch.manual_seed(0)
        np.random.seed(0)
        noise = SystemNoise()
        uploads += [
            release(gradient, [1] * 32, clip_norm=C, sigma=1.0, noise=noise).values.flatten()
            for _ in range(2)
        ]
    correlation = np.corrcoef(torch.stack(uploads).numpy())
    assert np.abs(correlation - np.eye(16)).max() < 6.5 / math.sqrt(gradient.numel())


def test_insecure_noise_repeats_for_a_seed_and_differs_between_uploads_and_clients() -> None:
    def uploads(seed: int, client: str) -> list[torch.Tensor]:
        noise = InsecureNoise(seed, client)
        return [noise.standard_normal((50,)) for _ in range(2)]

    first, second = uploads(1, "a")
    assert all(torch.equal(x, y) for x, y in zip((first, second), uploads(1, "a"), strict=True))
    different = [first, second, *uploads(1, "b"), *uploads(2, "a")]
    assert len({tuple(x.tolist()) for x in different}) == len(different)
    assert SystemNoise.secret
    assert not InsecureNoise.secret


@pytest.mark.parametrize(
    ("release", "most"), [("logits", 4096), ("row_space", 4096), ("labels", 0), ("full", 0)]
)
def test_more_classes_than_a_device_can_hold_are_refused_before_anything_is_made(release, most):
    """Two releases hold the square of their number, which the server's ``task.labels`` decides."""
    scenario = with_overrides(find_scenario("quickstart"), [f"privacy.release={release}"])
    check_classes(scenario, most or 100_000)
    if most:
        with pytest.raises(FedloraError, match=r"there are 4,097 classes, .* takes 4,096 at most"):
            check_classes(scenario, most + 1)
