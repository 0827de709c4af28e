"""Token recovery from tapped activations: nearest neighbour, learned inverter, next tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clients.build import EdgeParts
from fedlora.privacy.mechanisms import SystemNoise, release
from fedlora.split import LanguageHead
from fedlora.tasks import IGNORED
from simulations.audit.attacks.inverter import Fit, TokenInverter, train_inverter
from simulations.audit.attacks.next_tokens import next_tokens
from simulations.audit.attacks.tokens import nearest_tokens, token_accuracy
from simulations.audit.recording import Advance, Observed

TOKENS = 4000
"""Most tokens that an attack is judged on."""
_NEXT_TOKENS = 400


@dataclass(frozen=True)
class ActivationNoise:
    """What the attacker knows of a mechanism on activations: its public parameters."""

    sigma: float
    clip_norm: float

    def __call__(self, activations: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return activations as the mechanism releases them."""
        return release(
            activations,
            lengths,
            clip_norm=self.clip_norm,
            sigma=self.sigma,
            noise=SystemNoise(),
        ).values

    def undo_clip(
        self, activations: torch.Tensor, lengths: Sequence[int], typical: float
    ) -> torch.Tensor:
        """Scale samples back to the typical norm of a token, as the attacker can."""
        gains = [max(1.0, typical * math.sqrt(n) / self.clip_norm) for n in lengths]
        each = torch.repeat_interleave(torch.tensor(gains), torch.tensor(lengths))
        return activations * each[:, None]


@dataclass(frozen=True)
class Received:
    """Activations of distinct samples, with their tokens to judge attacks by."""

    activations: torch.Tensor
    lengths: list[int]
    ids: torch.Tensor


def received(observed: Observed) -> Received:
    """Return the first upload of each sample, up to ``TOKENS`` tokens."""
    seen = set[tuple[str, int]]()
    rows, lengths, ids = [], list[int](), list[int]()
    for upload in observed.uploads:
        parts = torch.split(upload.activation, list(upload.lengths))
        for number, part, sample in zip(upload.samples, parts, upload.truth, strict=True):
            if (upload.client, number) not in seen and len(ids) + len(part) <= TOKENS:
                seen.add((upload.client, number))
                rows.append(part)
                lengths.append(len(part))
                ids += sample.ids
    return Received(torch.cat(rows), lengths, torch.tensor(ids))


def public_text(observed: Observed) -> list[tuple[int, ...]]:
    """Return the tokens of the rows that no client trains on, as the attacker's own text."""
    return [
        sample.ids for client in observed.clients for sample in client.door.truth(client.held_out)
    ]


@dataclass(frozen=True)
class Inverter:
    """The attacker's tools against one cut depth and one mechanism on activations.

    Attributes
    ----------
    table
        Activation of each token on its own, shape (vocabulary, width).
    network
        The learned inverter.
    noise
        The mechanism, where there is one.
    """

    table: torch.Tensor
    network: TokenInverter
    noise: ActivationNoise | None

    @torch.no_grad()
    def recover(self, observed: Observed) -> dict[str, float]:
        """Read the tokens back from the activations of a tapped run.

        Returns
        -------
        dict
            ``token_accuracy`` by nearest neighbour and ``inverter_accuracy``: fractions of
            positions whose token is right; ``tokens``, the number of positions.
        """
        found = received(observed)
        activations = found.activations.float()
        if self.noise is not None:
            activations = self.noise.undo_clip(activations, found.lengths, _typical(self.table))
        nearest = nearest_tokens(activations, self.table)
        learned = self.network.recover(activations, found.lengths)
        return {
            "token_accuracy": token_accuracy(nearest, found.ids),
            "inverter_accuracy": token_accuracy(learned, found.ids),
            "tokens": len(found.ids),
        }


@torch.no_grad()
def learn(
    parts: EdgeParts,
    text: Sequence[Sequence[int]],
    fit: Fit,
    noise: ActivationNoise | None = None,
    advance: Advance = lambda: None,
) -> Inverter:
    """Train the learned inverter.

    Parameters
    ----------
    parts
        The public front of the model, and its embedding.
    text
        The attacker's own text.
    fit
        How the inverter is trained.
    noise
        The mechanism on activations, where there is one.
    advance
        Called after every step.
    """
    front = parts.model.front
    table = single_tokens(parts)

    def watch(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        activations: torch.Tensor = front(ids, lengths).float()
        if noise is None:
            return activations
        return noise.undo_clip(noise(activations, lengths), lengths, _typical(table))

    network = train_inverter(
        front.tokens.weight.detach() * front.tokens.scale,
        watch,
        text,
        fit,
        longest=parts.scenario.task.max_length,
        advance=advance,
    )
    return Inverter(table, network, noise)


def single_tokens(parts: EdgeParts) -> torch.Tensor:
    """Return the activation of each token of the vocabulary on its own."""
    front = parts.model.front
    vocabulary = front.tokens.weight.shape[0]
    rows = [front(ids, [1] * len(ids)) for ids in torch.split(torch.arange(vocabulary), 2048)]
    return torch.cat(rows).float()


def _typical(table: torch.Tensor) -> float:
    """Return the typical norm of a token's activation."""
    return float(table.norm(dim=1).mean())


def recover_next_tokens(observed: Observed) -> dict[str, float]:
    """Read the next tokens of a language model from its uploaded gradients."""
    model = observed.parts.model
    head = observed.clients[0].head.module  # pretrained and public
    assert isinstance(head, LanguageHead)
    z, gradients, truth = list[torch.Tensor](), list[torch.Tensor](), list[int]()
    for upload in reversed(observed.uploads):
        targets = [t for sample in upload.truth for t in sample.target]
        for place, target in enumerate(targets):
            if target != IGNORED and len(truth) < _NEXT_TOKENS:
                z.append(upload.z[place])
                gradients.append(upload.gradient[place])
                truth.append(target)
    found = next_tokens(
        torch.stack(gradients),
        torch.stack(z),
        model.back.final,
        head.weight * head.scale,
        head.cap,
    )
    return {"accuracy": token_accuracy(found, torch.tensor(truth)), "tokens": len(truth)}
