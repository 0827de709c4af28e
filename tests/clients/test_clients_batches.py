"""The order in which a client goes through its samples."""

from __future__ import annotations

import itertools

import pytest

from fedlora.batch_order import BatchStream
from fedlora.tasks import Sample

SAMPLES = [Sample((number,), 0) for number in range(7)]


def stream(batch_size: int = 3, seed: int = 0, client: int = 0) -> BatchStream:
    return BatchStream(SAMPLES, batch_size, seed, client)


def take(batches: BatchStream, count: int) -> list[list[int]]:
    return [batches.indices() for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_each_pass_visits_each_sample_once(batch_size):
    order = list(itertools.chain(*take(stream(batch_size), 21)))
    for start in range(0, len(order) - 6, 7):
        assert sorted(order[start : start + 7]) == list(range(7))


def test_passes_differ_in_order():
    order = list(itertools.chain(*take(stream(7), 6)))
    assert len({tuple(order[start : start + 7]) for start in range(0, 42, 7)}) > 1


def test_client_with_few_samples_gives_what_it_has():
    batches = stream(batch_size=50)
    assert batches.batch_size == 7
    assert sorted(batches.indices()) == list(range(7))


@pytest.mark.parametrize("position", [0, 3, 6, 7, 15, 300])
def test_position_can_be_restored(position):
    first = stream(batch_size=1)
    take(first, position)
    second = stream(batch_size=3)
    take(second, 5)
    second.position = position
    assert list(itertools.chain(*take(first, 9))) == list(itertools.chain(*take(second, 3)))


def test_batch_that_was_put_back_comes_again():
    batches = stream()
    for _ in range(6):
        batch = batches.indices()
        batches.back()
        assert batches.indices() == batch


def test_order_follows_from_seed_and_client():
    assert take(stream(), 9) == take(stream(), 9)
    orders = [take(stream(seed=s, client=c), 9) for s in range(3) for c in range(3)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
