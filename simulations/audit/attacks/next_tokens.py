"""Next tokens from the gradient at the cut of a language model.

The labels of a language model are its text. Its output embedding is public, and the server has sent
the representation, so it knows the gradient of a position for every token that could follow, and
asks which is nearest to what it received. Without noise that solves for the text exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def next_tokens(
    gradients: torch.Tensor,
    z: torch.Tensor,
    final: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    cap: float = 0.0,
) -> torch.Tensor:
    """Return the token that each position's gradient says comes next.

    Parameters
    ----------
    gradients
        Uploaded gradients of positions that are trained, shape (tokens, width); how they are scaled
        does not matter.
    z
        Representations that the server had sent, shape (tokens, width).
    final
        The public modules between the cut and the output embedding, which treat each token alone.
    weight
        Output embedding, shape (vocabulary, width).
    cap
        Soft cap on the logits; 0 for none.

    Returns
    -------
    Tensor
        Token ids, shape (tokens,).
    """
    weight = weight.detach().float()
    found = [
        _nearest(g, _candidates(x, final, weight, cap))
        for g, x in zip(gradients.float(), z.float(), strict=True)
    ]
    return torch.stack(found)


def _candidates(
    z: torch.Tensor,
    final: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    cap: float,
) -> torch.Tensor:
    """Return the gradient of one position for each token that could follow."""
    rows = z.detach().expand(len(weight), -1).requires_grad_()
    with torch.enable_grad():
        hidden = final(rows)
        slope = torch.ones(len(weight))
        logits = weight @ hidden[0].detach()
        if cap:
            logits = cap * torch.tanh(logits / cap)
            slope = 1 - (logits / cap) ** 2
        mean = (torch.softmax(logits, 0) * slope) @ weight
        cotangent = mean - slope[:, None] * weight
        if hidden is rows:
            return cotangent
        (gradients,) = torch.autograd.grad(hidden, rows, cotangent)
    return gradients


def _nearest(gradient: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Compare directions: clipping and a mean over tokens only scale a gradient."""
    lengths = candidates.square().sum(1).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return (candidates @ gradient / lengths).argmax()
