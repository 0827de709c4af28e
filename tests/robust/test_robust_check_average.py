"""An average that breaks its word is named with what was expected; the shipped ones break none."""

from __future__ import annotations

import pytest
import torch

from fedlora.registry import names, resolve
from fedlora.robust.base import RobustAverage, masked_median
from fedlora.robust.check import check_average
from fedlora.robust.coordinate import CoordinateAverage, CoordinateMedian


@pytest.mark.parametrize("name", names("averages"))
def test_nothing_speaks_against_the_averages_that_are_shipped(name):
    assert check_average(resolve("averages", name, RobustAverage, key="robust.average")) == []


class Mean(CoordinateAverage):
    def of(self, block):
        return block.values.sum(0) / block.present.sum(0)[:, None].clamp_min(1)


class Sum(CoordinateAverage):
    def of(self, block):
        return block.values.sum(0)


class First(CoordinateAverage):
    def of(self, block):
        return block.values[0]


class Noisy(CoordinateMedian):
    def of(self, block):
        return super().of(block) + 1e-3 * torch.randn(block.values.shape[1:])


class Counts(CoordinateAverage):
    def of(self, block):
        return masked_median(block.values, torch.ones_like(block.present)[:, :, None])


class Sorts(CoordinateMedian):
    def of(self, block):
        block.values.copy_(block.values.sort(0).values)
        return super().of(block)


class Flat(CoordinateMedian):
    def of(self, block):
        return super().of(block).flatten()


class Raises(CoordinateAverage):
    def of(self, block):
        return block.values[0, 100]


class Exits(RobustAverage):
    def average(self, blocks, weights):
        raise SystemExit(0)


class Empty(RobustAverage):
    def average(self, blocks, weights):
        return []


class Divides(CoordinateAverage):
    def of(self, block):
        return block.values.sum(0) / block.present.sum(0)[:, None]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Mean, "1 of 5 clients that send 1000 move the average"),
        (Sum, "clients that all say the same is something else"),
        (First, "depends on the order of the clients"),
        (Noisy, "other numbers for the same gradients"),
        (Counts, "that lacks a component changes the average there"),
        (Sorts, "average has changed its input"),
        (Flat, "expected a tensor (3, 5)"),
        (Raises, "average raised IndexError"),
        (Exits, "average raised SystemExit"),
        (Empty, "expected a list with a tensor a block"),
        (Divides, "average gave what is not finite"),
        (RobustAverage, "cannot be made for 0 hostile clients (TypeError"),
        (lambda hostile: hostile, "give a class that inherits from RobustAverage"),
    ],
)
def test_a_broken_average_is_named_with_what_was_expected(make, words):
    findings = check_average(make)
    assert findings and words in findings[0], findings
    assert not any("\n" in text for text in findings)
