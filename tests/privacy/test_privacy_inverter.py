from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fedlora.privacy.mechanisms import InsecureNoise, release
from simulations.audit.attacks.inverter import Fit, TokenInverter, train_inverter
from simulations.audit.attacks.tokens import nearest_tokens, token_accuracy

VOCABULARY, WIDTH, LENGTH = 200, 24, 8


def successors(rows: int, seed: int) -> list[tuple[int, ...]]:
    """Text in which each token nearly settles the next one."""
    generator = torch.Generator().manual_seed(seed)
    text = []
    for _ in range(rows):
        start = int(torch.randint(VOCABULARY, (1,), generator=generator))
        text.append(tuple((start + 3 * place) % VOCABULARY for place in range(LENGTH)))
    return text


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))


def test_it_starts_as_the_nearest_neighbour_attack(table: torch.Tensor) -> None:
    activations = table[torch.randint(VOCABULARY, (40,))] + 0.8 * torch.randn(40, WIDTH)
    inverter = TokenInverter(table, WIDTH, LENGTH)
    found = inverter.recover(activations, [LENGTH] * 5)
    assert torch.equal(found, nearest_tokens(activations, table))


def test_it_undoes_a_map_that_hides_tokens_from_their_neighbours(table: torch.Tensor) -> None:
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))

    def observe(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return table[ids] @ turn

    fit = Fit(steps=80, rows=24, rate=1e-2)
    inverter = train_inverter(table, observe, successors(200, 2), fit, longest=LENGTH)
    secret = successors(30, 3)
    ids = torch.tensor([token for row in secret for token in row])
    lengths = [LENGTH] * len(secret)
    activations = observe(ids, lengths)
    assert token_accuracy(nearest_tokens(activations, table), ids) < 0.1
    assert token_accuracy(inverter.recover(activations, lengths), ids) > 0.95


def test_it_knows_which_tokens_are_frequent_where_noise_hides_them(table: torch.Tensor) -> None:
    noise = InsecureNoise(0, "attack")
    norm = float(table.norm(dim=1).mean()) * LENGTH**0.5

    def observe(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return release(table[ids], lengths, clip_norm=norm, sigma=0.15, noise=noise).values

    fit = Fit(steps=60, rows=16, rate=5e-3)
    text = [row[:1] * LENGTH for row in successors(200, 2) if row[0] % 20 == 0]
    inverter = train_inverter(table, observe, text, fit, longest=LENGTH)
    ids = torch.tensor([token for row in text[:20] for token in row])
    lengths = [LENGTH] * (len(ids) // LENGTH)
    activations = observe(ids, lengths)
    nearest = token_accuracy(nearest_tokens(activations, table), ids)
    assert 0.05 < nearest < 0.9
    assert token_accuracy(inverter.recover(activations, lengths), ids) > nearest + 0.1


def test_tokens_that_the_public_text_lacks_are_read_too(table: torch.Tensor) -> None:
    def observe(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return table[ids]

    text = [tuple(range(LENGTH))]
    inverter = train_inverter(table, observe, text, Fit(steps=40, rows=8), longest=LENGTH)
    ids = torch.arange(LENGTH, VOCABULARY)
    lengths = [LENGTH] * (len(ids) // LENGTH)
    assert token_accuracy(inverter.recover(table[ids], lengths), ids) > 0.99
