"""Gradient inversion on the adapter gradients that a run's uploads lead to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from fedlora.privacy.mechanisms import mechanism_of
from fedlora.split import pool_packed
from fedlora.tasks import Sample
from simulations.audit.attacks.gradient_inversion import AdapterGradients, invert_gradients
from simulations.audit.attacks.tokens import nearest_tokens, token_accuracy
from simulations.audit.recording import Advance, Observed, Upload
from simulations.audit.tokens import single_tokens

_LENGTH_MIN = 4


def invert(
    observed: Observed, samples: int, steps: int, advance: Advance = lambda: None
) -> dict[str, float]:
    """Search for the tokens and labels behind the adapter gradients of the last step.

    The adapter gradient of each sample is what the server computes from its upload; the attacker
    sees that gradient, the model and the head, but no activation.

    Parameters
    ----------
    observed
        A tapped run with a shared head whose server pools.
    samples
        Number of samples of equal length that are attacked together.
    steps
        Steps of the search.
    advance
        Called after each.

    Returns
    -------
    dict
        ``token_accuracy`` and ``label_accuracy``, the ``distance`` that is left between the
        gradients, ``samples`` and their ``length``.
    """
    engine = observed.server.engine
    assert engine.pool is not None
    final, pool = engine.adapter(), engine.pool
    engine.load_adapter(observed.last_adapter)
    chosen, length = _alike(observed, samples)
    truth = [sample for _, _, sample in chosen]
    embeddings = torch.stack([activation for activation, _, _ in chosen])
    gradient = torch.stack([g for _, g, _ in chosen])
    lengths = [length] * len(chosen)
    engine.masks.set([engine.full_ranks()], engine.blocks.places([lengths]), engine.device)

    def forward(e: torch.Tensor) -> torch.Tensor:
        states = engine.blocks(e.flatten(0, 1).to(engine.device, engine.dtype), lengths)
        return pool_packed(states, lengths, pool).float().cpu()

    with AdapterGradients(forward, engine.projections) as gradients:
        target = gradients(embeddings, gradient.reshape_as)
        weight = observed.uploads[-1].weight
        assert weight is not None
        with torch.no_grad():
            table = single_tokens(observed.parts)
        found = invert_gradients(
            gradients,
            target,
            weight,
            (len(chosen), length, embeddings.shape[2]),
            float(table.square().mean().sqrt()),
            steps=steps,
            advance=advance,
        )
    engine.load_adapter(final)
    ids = torch.tensor([token for sample in truth for token in sample.ids])
    labels = torch.tensor([sample.target for sample in truth])
    return {
        "token_accuracy": token_accuracy(
            nearest_tokens(found.embeddings.flatten(0, 1), table), ids
        ),
        "label_accuracy": float((found.labels == labels).double().mean()),
        "distance": found.distance,
        "samples": len(chosen),
        "length": length,
    }


def _alike(
    observed: Observed, most: int
) -> tuple[list[tuple[torch.Tensor, torch.Tensor, Sample]], int]:
    """Return activation, cut gradient and truth of the last step's samples of one length."""
    last = {upload.client: upload for upload in observed.uploads}
    rows = [
        (activation, gradient, sample)
        for upload in last.values()
        for activation, gradient, sample in zip(
            torch.split(upload.activation, list(upload.lengths)),
            _cut_gradient(observed, upload),
            upload.truth,
            strict=True,
        )
    ]
    counts = Counter(len(s.ids) for _, _, s in rows if len(s.ids) >= _LENGTH_MIN)
    length = counts.most_common(1)[0][0] if counts else len(rows[0][2].ids)
    return [row for row in rows if len(row[2].ids) == length][:most], length


def _cut_gradient(observed: Observed, upload: Upload) -> torch.Tensor:
    """Return the gradient at the cut, as the server computes it from what was uploaded."""
    policy = observed.server.scenario.privacy
    mechanism = mechanism_of(policy)
    if mechanism is None or not mechanism.noises_gradients:
        return upload.gradient
    assert upload.weight is not None
    sigma = float(policy.sigma or 1.0)
    return mechanism.gradients(upload.gradient, upload.z, upload.weight, sigma).cut


def applies(observed: Observed) -> str:
    """Return why the attack does not apply, or nothing."""
    upload: Any = observed.uploads[-1]
    if not observed.parts.model.task.pooled:
        return "the labels of a language model are its text, which its cut gradients give away"
    if observed.server.engine.pool is None:
        return "the server does not hold the last blocks (model.client_back)"
    if observed.server.scenario.link.r_cut:
        return "link.r_cut leaves the head to the server; with link.r_cut=0 it learns as much"
    if upload.weight is None:
        return "heads are personal, and the attacker has to know the head"
    return ""
