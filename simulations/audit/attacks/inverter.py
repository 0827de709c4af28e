"""A learned inverter: a network that reads tokens back from activations.

The attacker has the public front of the model and text of the same kind, so it makes as many pairs
of tokens and activations as it likes, with the noise that the mechanism's public parameters
describe, and learns to undo both (as the first stage of BiSR, Chen et al. 2024). The network
corrects each activation with the help of its neighbours, and then weighs the distance to each token
embedding against how frequent the token is. It starts as the nearest-neighbour attack, and stays
that where training does not read the attacker's own text better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fedlora.split import pad_rows
from simulations.audit.attacks.tokens import token_accuracy

Observe = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Maps packed tokens and the rows' lengths to activations as the server would receive them."""

_HIDDEN, _LAYERS, _HEADS = 128, 1, 4
_ROWS = 32  # of text that are read at once
_VALIDATION = 64  # rows of public text by which the inverter is kept or dropped
_CANDIDATES = 4096  # token embeddings that a training step compares with, at least
_SHARPNESS = 10.0  # of the first lookup, over the embeddings' mean squared norm


@dataclass(frozen=True)
class Fit:
    """How an inverter is trained.

    Attributes
    ----------
    steps, rows
        Optimiser steps, and rows of text in each.
    rate
        Peak learning rate of Adam; it falls to zero along a cosine.
    replaced
        Fraction of tokens that are replaced by random ones, so that the inverter does not depend on
        the public text's vocabulary.
    """

    steps: int = 200
    rows: int = 24
    rate: float = 2e-3
    replaced: float = 0.15


class TokenInverter(nn.Module):
    """Maps activations to the neighbourhood of the token embeddings that they come from.

    Parameters
    ----------
    table
        Public token embedding, shape (vocabulary, embedding width).
    width
        Width of the activations.
    longest
        Most tokens in a row.
    """

    def __init__(self, table: torch.Tensor, width: int, longest: int) -> None:
        super().__init__()
        self.table = table.detach().float()
        embedding = self.table.shape[1]
        self.places = nn.Parameter(0.02 * torch.randn(longest, _HIDDEN))
        self.enter = nn.Linear(width, _HIDDEN)
        layer = nn.TransformerEncoderLayer(
            _HIDDEN, _HEADS, 2 * _HIDDEN, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.leave = nn.Linear(_HIDDEN, embedding)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.skip = nn.Linear(width, embedding, bias=False)
        nn.init.eye_(self.skip.weight)
        scale = _SHARPNESS / float(self.table.square().sum(1).mean())
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(scale)))
        self.prior = nn.Parameter(torch.zeros(len(self.table)))

    def forward(self, activations: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return an estimate of each token's embedding.

        Parameters
        ----------
        activations
            Packed, shape (tokens, width).
        lengths
            Tokens of each row.

        Returns
        -------
        Tensor
            Shape (tokens, embedding width).
        """
        rows, mask, places = pad_rows(activations, lengths)
        hidden = self.enter(rows) + self.places[: rows.shape[1]]
        hidden = self.encoder(hidden, src_key_padding_mask=None if mask is None else mask == 0)
        correction: torch.Tensor = self.leave(hidden)
        packed = correction.reshape(-1, correction.shape[-1])[places]
        estimate: torch.Tensor = packed + self.skip(activations)
        return estimate

    def scores(
        self, activations: torch.Tensor, lengths: Sequence[int], tokens: torch.Tensor
    ) -> torch.Tensor:
        """Return the log-odds of each of some tokens, shape (tokens of the rows, tokens)."""
        table = self.table[tokens]
        near = self(activations, lengths) @ table.T - table.square().sum(1) / 2
        scores: torch.Tensor = self.log_sharpness.exp() * near + self.prior[tokens]
        return scores

    def loss(
        self, activations: torch.Tensor, lengths: Sequence[int], ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the cross-entropy of the lookup among the batch's tokens and random others."""
        vocabulary = len(self.table)
        if vocabulary <= _CANDIDATES:
            return F.cross_entropy(self.scores(activations, lengths, torch.arange(vocabulary)), ids)
        others = torch.randint(vocabulary, (_CANDIDATES,))
        candidates, inverse = torch.unique(torch.cat([ids, others]), return_inverse=True)
        return F.cross_entropy(self.scores(activations, lengths, candidates), inverse[: len(ids)])

    @torch.no_grad()
    def recover(self, activations: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the token that each activation is read as, shape (tokens,)."""
        vocabulary = torch.arange(len(self.table))
        found = []
        start = 0
        for first in range(0, len(lengths), _ROWS):
            part = lengths[first : first + _ROWS]
            rows = activations[start : start + sum(part)]
            found.append(self.scores(rows.float(), part, vocabulary).argmax(1))
            start += sum(part)
        return torch.cat(found)


def train_inverter(
    table: torch.Tensor,
    observe: Observe,
    text: Sequence[Sequence[int]],
    fit: Fit | None = None,
    *,
    longest: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> TokenInverter:
    """Train an inverter on public text.

    Parameters
    ----------
    table
        Public token embedding, shape (vocabulary, width).
    observe
        What the server would receive for given tokens; called afresh at every step, so that noise
        is too.
    text
        Token ids of public records.
    fit
        How to train.
    longest
        Most tokens in a row.
    seed
        Seed of the attacker's choices.
    advance
        Called after every step.
    """
    fit = fit or Fit()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        sample = observe(torch.tensor(text[0]), [len(text[0])])
        inverter = TokenInverter(table, sample.shape[1], longest)
        start = {name: tensor.clone() for name, tensor in inverter.state_dict().items()}
        counts = torch.bincount(
            torch.tensor([t for row in text for t in row]), minlength=len(table)
        )
        inverter.prior.copy_(((counts + 1.0) / (counts.sum() + len(table))).log())
        inverter.requires_grad_()
        optimiser = torch.optim.Adam(inverter.parameters(), lr=fit.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, fit.steps)
        for _ in range(fit.steps):
            chosen = [text[i] for i in torch.randint(len(text), (fit.rows,)).tolist()]
            ids = torch.tensor([token for row in chosen for token in row])
            strange = torch.rand(len(ids)) < fit.replaced
            ids = torch.where(strange, torch.randint(len(table), ids.shape), ids)
            lengths = [len(row) for row in chosen]
            activations = observe(ids, lengths).float()
            with torch.enable_grad():
                loss = inverter.loss(activations, lengths, ids)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            advance()
        return _better(inverter, start, observe, text)


def _better(
    inverter: TokenInverter,
    start: dict[str, torch.Tensor],
    observe: Observe,
    text: Sequence[Sequence[int]],
) -> TokenInverter:
    """Return the inverter, as it was at the start where that reads the public text better."""
    chosen = text[-_VALIDATION:]
    ids, lengths = torch.tensor([t for row in chosen for t in row]), [len(row) for row in chosen]
    activations = observe(ids, lengths).float()
    learned = inverter.eval().state_dict()
    right = []
    for state in (start, {name: tensor.clone() for name, tensor in learned.items()}):
        inverter.load_state_dict(state)
        right.append(token_accuracy(inverter.recover(activations, lengths), ids))
    if right[0] > right[1]:
        inverter.load_state_dict(start)
    return inverter
