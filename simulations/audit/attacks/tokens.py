"""Token recovery from activations by nearest neighbour.

At cut depth 0 an activation is a row of the public embedding, plus what the position adds. The
server looks the row up; noise on gradients does nothing about that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_CHUNK = 256


def nearest_tokens(activations: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the token whose embedding is nearest to each activation, in Euclidean distance.

    Parameters
    ----------
    activations
        Shape (tokens, width).
    table
        Embedding of every token of the vocabulary, shape (vocabulary, width).

    Returns
    -------
    Tensor
        Token ids, shape (tokens,).
    """
    embeddings = table.float()
    # ||x - e||^2 without ||x||^2, which is the same for every token
    offsets = embeddings.square().sum(1)
    x = activations.float()
    chunks = [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]
    return torch.cat([(offsets - 2 * chunk @ embeddings.T).argmin(1) for chunk in chunks])


def recover_tokens(
    activations: torch.Tensor,
    positions: Sequence[int],
    table_at: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Return the nearest token of each activation where the embedding depends on the position.

    Parameters
    ----------
    activations
        Packed activations, shape (tokens, width).
    positions
        Position of each of them in its sample.
    table_at
        Returns what the public front of the model makes of every token of the vocabulary at a
        position, shape (vocabulary, width).

    Returns
    -------
    Tensor
        Token ids, shape (tokens,).
    """
    where = torch.as_tensor(positions)
    ids = torch.zeros(len(activations), dtype=torch.int64)
    for position in sorted(set(where.tolist())):
        rows = where == position
        ids[rows] = nearest_tokens(activations[rows], table_at(position))
    return ids


def token_accuracy(recovered: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the fraction of positions whose token was recovered."""
    return (recovered == truth).double().mean().item()
