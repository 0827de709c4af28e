"""Each average against an oracle, and what a hostile client can and cannot do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from fedlora.config import RobustConfig, Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.robust.aggregation import create_average, robust_mean
from fedlora.robust.base import Block, RobustAverage
from fedlora.robust.mixing import client_distances, mix

CLIENTS, COMPONENTS, WIDTH = 8, 4, 6
ROBUST = ("median", "trimmed_mean", "norm_filter")


def blocks(seed: int = 0, *, ranks: bool = True, clients: int = CLIENTS) -> list[Block]:
    """Honest gradients: a common direction and a part of each client's own."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(3):
        common = torch.randn(COMPONENTS, WIDTH, generator=generator)
        own = torch.randn(clients, COMPONENTS, WIDTH, generator=generator)
        rank = torch.randint(0, COMPONENTS + 1, (clients,), generator=generator)
        rank = rank if ranks else torch.full((clients,), COMPONENTS)
        present = torch.arange(COMPONENTS) < rank[:, None]
        made.append(Block((common + own) * present[:, :, None], present))
    return made


def average(name: str, *, hostile: int = 1, mixing: bool = False) -> RobustAverage:
    found = create_average(RobustConfig(average=name, hostile=hostile, mix=mixing))
    assert found is not None
    return found


def columns(block: Block, component: int) -> np.ndarray:
    return block.values[block.present[:, component], component].numpy()


@pytest.mark.parametrize("hostile", [1, 2])
@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_coordinate_averages_equal_numpy_over_the_clients_of_a_component(name, hostile):
    given = blocks()
    means, present = robust_mean(average(name, hostile=hostile), given, torch.ones(CLIENTS))
    counts = set()
    for block, mean, there in zip(given, means, present, strict=True):
        for component in range(COMPONENTS):
            values = columns(block, component)
            counts.add(len(values))
            assert bool(there[component]) == (len(values) > 2 * hostile)
            if len(values) <= 2 * hostile:
                assert not mean[component].any()
            elif name == "median":
                expected = np.median(values, axis=0)
                assert mean[component].numpy() == pytest.approx(expected, rel=1e-5)
            else:
                expected = trim_mean(values, hostile / len(values) + 1e-9, axis=0)
                assert mean[component].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(counts) > 3  # of many sizes, odd and even


def test_norm_filter_without_a_hostile_client_is_the_mean_over_samples():
    given, weights = blocks(ranks=False), torch.arange(1.0, CLIENTS + 1)
    means, _ = robust_mean(average("norm_filter"), given, weights)
    for block, mean in zip(given, means, strict=True):
        expected = np.average(block.values.numpy(), axis=0, weights=weights.numpy())
        assert mean.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_norm_filter_holds_a_low_rank_against_others_on_the_same_components():
    given = blocks(ranks=False)
    for block in given:  # one has a single component, ten times what is usual there
        block.present[0, 1:] = False
        block.values[0, 1:] = 0.0
        block.values[0, 0] *= 10
    excess = average("norm_filter").excess(given)
    assert excess[0] > 5
    assert (excess[1:] < 2).all()


def test_norm_filter_leaves_no_component_without_a_client():
    apart = torch.eye(CLIENTS)[:, :, None].repeat(1, 1, 4) * 3 + 0.1  # each strong at its own
    apart[-1] = 1e30
    block = Block(apart, torch.ones(CLIENTS, CLIENTS, dtype=torch.bool))
    assert (average("norm_filter").excess([block]) > 2).all()
    [mean], _ = robust_mean(average("norm_filter"), [block], torch.ones(CLIENTS))
    assert torch.allclose(mean, apart[:-1].mean(0))


POISONS = {
    "huge": lambda v: v * -1e4,
    "beyond squares": lambda v: torch.full_like(v, 3e38),
    "infinite": lambda v: torch.full_like(v, math.inf),
    "not a number": lambda v: torch.full_like(v, math.nan),
    "random": lambda v: 10 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1)),
    "flipped": lambda v: -3 * v,
}


@pytest.mark.parametrize("mixing", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ROBUST)
def test_one_hostile_client_moves_no_average_further_than_honest_ones_are_apart(
    name, poison, mixing
):
    given = blocks(ranks=True)
    for block in given:
        present = block.present.clone()
        present[-1] = True  # the highest rank for whoever says so
        block.present.copy_(present)
        block.values[-1] = POISONS[poison](block.values[-2])
    means, there = robust_mean(
        average(name, mixing=mixing), given, torch.tensor([1.0] * (CLIENTS - 1) + [9.0])
    )
    for block, mean, components in zip(given, means, there, strict=True):
        for component in components.nonzero().flatten().tolist():
            honest = columns(block, component)
            honest = honest[:-1]
            center = honest.mean(0)
            spread = np.linalg.norm(honest - center, axis=1).max()
            assert np.linalg.norm(mean[component].numpy() - center) <= spread * 1.5 + 1e-6


def test_the_plain_mean_is_moved_as_far_as_a_hostile_client_likes():
    given = blocks(ranks=False)
    honest = given[0].values[:-1].mean(0)
    given[0].values[-1] *= -1e4
    assert torch.dist(given[0].values.mean(0), honest) > 100


def test_component_that_only_a_hostile_client_trains_is_left_alone():
    given = blocks(ranks=False)
    for block in given:
        block.present[:-1, -1] = False
        block.values[:-1, -1] = 0.0
    for name in ROBUST:
        means, there = robust_mean(average(name), given, torch.ones(CLIENTS))
        assert all(not mean[-1].any() for mean in means)
        assert all(components.tolist() == [True] * 3 + [False] for components in there)


def test_client_of_rank_zero_changes_nothing():
    given = blocks()
    for block in given:
        block.present[3] = False
        block.values[3] = 0.0
    without = [
        Block(*(torch.cat([x[:3], x[4:]]) for x in (block.values, block.present)))
        for block in given
    ]
    for name in ROBUST:
        for mixing in (False, True):
            kind = average(name, mixing=mixing)
            whole, _ = robust_mean(kind, given, torch.ones(CLIENTS))
            part, _ = robust_mean(kind, without, torch.ones(CLIENTS - 1))
            for a, b in zip(whole, part, strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_distances_are_those_of_the_components_in_common():
    given = blocks(seed=3)
    distances = client_distances(given)
    apart = torch.zeros(CLIENTS, CLIENTS)
    typical = torch.zeros(CLIENTS, CLIENTS)
    for block in given:
        for component in range(COMPONENTS):
            own = block.present[:, component]
            if not own.any():
                continue
            median = np.median(np.square(columns(block, component)).sum(1))
            both = own[:, None] & own[None]
            values = block.values[:, component]
            apart += both * torch.cdist(values, values) ** 2
            typical += both * median
    expected = (apart / typical).nan_to_num(nan=math.inf)
    expected.fill_diagonal_(0)
    assert torch.allclose(distances.float(), expected, rtol=1e-3, atol=1e-4)


def test_mixing_takes_the_mean_over_the_nearest_who_have_a_component():
    values = torch.tensor([0.0, 1.0, 3.0, 10.0, 100.0])[:, None, None]
    present = torch.tensor([[True]] * 5)
    block = Block(values, present)
    mixed = mix(block, client_distances([block]), 2)
    assert mixed.values.flatten().tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 14 / 3, 113 / 3])


def test_mixing_keeps_what_only_a_few_honest_clients_know():
    """Three of eight see a class: the median forgets it, mixed gradients do not."""
    values = torch.zeros(CLIENTS, 1, WIDTH)
    values[:, 0, 0] = 1.0
    values[:3, 0, 1] = 1.0
    given = [Block(values, torch.ones(CLIENTS, 1, dtype=torch.bool))]
    plain, _ = robust_mean(average("median"), given, torch.ones(CLIENTS))
    mixed, _ = robust_mean(average("median", mixing=True), given, torch.ones(CLIENTS))
    assert plain[0][0, 1] == 0
    assert mixed[0][0, 1] == pytest.approx(3 / 8, abs=0.15)


class WrongShape(RobustAverage):
    def average(self, blocks, weights):
        return [block.values for block in blocks]


class NotFinite(RobustAverage):
    def average(self, blocks, weights):
        return [block.values[0] / 0 for block in blocks]


@pytest.mark.parametrize(("kind", "words"), [(WrongShape, "shapes"), (NotFinite, "NaN")])
def test_plugin_that_returns_nonsense_is_named(kind, words):
    with pytest.raises(FedloraError, match=f"{kind.__name__} returned .*{words}"):
        robust_mean(kind(1), blocks(), torch.ones(CLIENTS))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["robust.average=modian"], "median"),
        (
            ["robust.average=fedlora.errors:FedloraError"],
            "inherits from fedlora.robust.base.RobustAverage",
        ),
        (["robust.average=median", "robust.options.factor=2"], "robust.options has no option"),
        (
            ["robust.average=norm_filter", "robust.options.factor=0.5"],
            "factor is 0.5; set a finite number from 1",
        ),
    ],
)
def test_average_that_cannot_be_used_is_refused_in_one_sentence(overrides, words):
    config = with_overrides(Scenario(), overrides).robust
    with pytest.raises(FedloraError, match=words):
        create_average(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["robust.average=median", "federation.clients=2"], r"at least 3"),
        (["robust.average=median", "robust.hostile=4"], r"at least 9"),
        (["robust.hostile=0"], "robust.hostile is 0"),
        (["robust.row_clip=-1.0"], "row_clip"),
    ],
)
def test_setting_that_promises_nothing_is_refused(overrides, words):
    with pytest.raises(FedloraError, match=words):
        with_overrides(Scenario(), overrides)
