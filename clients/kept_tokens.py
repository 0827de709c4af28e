"""``link.keep``: the gradients of some tokens alone, drawn so that nothing is biased.

Importance sampling (as Katharopoulos and Fleuret 2018 draw samples): token i is kept with
probability ``p_i`` in proportion to the norm of its gradient, which is 0 where the model is sure
and right, and what is sent is ``g_i / p_i``. Its expectation is ``g_i``, and among all draws of so
many tokens this one has the least variance.

=========  ==========================================================
``g_i``    gradient of token i at the cut
``p_i``    min(1, max(floor, c |g_i|)), with c so that they add up
``floor``  a tenth of ``share``, which bounds 1 / p_i
=========  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedlora.link.rotation import uniform

_FLOOR = 0.1


@dataclass(frozen=True)
class KeptTokens:
    """What is sent of a batch's gradient.

    Attributes
    ----------
    gradient
        Of the tokens that are kept, over their probabilities, shape (kept, width).
    mask
        A bit for each token, packed into uint8, the first one highest.
    """

    gradient: torch.Tensor
    mask: torch.Tensor


def keep_tokens(gradient: torch.Tensor, share: float, key: bytes) -> KeptTokens:
    """Draw which tokens' gradients are sent.

    Parameters
    ----------
    gradient
        Shape (tokens, width).
    share
        Of the tokens that are kept on average, above 0.
    key
        32 bytes from which it is drawn.
    """
    chance = probabilities(gradient.double().norm(dim=1), share)
    kept = uniform(key, len(chance)).double() < chance
    scaled = gradient[kept] / chance[kept, None].to(gradient.dtype)
    return KeptTokens(scaled, torch.from_numpy(np.packbits(kept.numpy())))


def probabilities(norms: torch.Tensor, share: float) -> torch.Tensor:
    """Return the probability with which each token is kept; they add up to ``share`` of them.

    Parameters
    ----------
    norms
        Of the tokens' gradients, shape (tokens,).
    share
        Above 0, up to 1.
    """
    floor = _FLOOR * share
    if not len(norms) or not torch.isfinite(norms).all() or not norms.any():
        return torch.full_like(norms, share)
    low, high = 0.0, 1.0 / float(norms[norms > 0].min())
    for _ in range(60):  # the sum grows with the factor
        factor = (low + high) / 2
        found = (factor * norms).clamp(floor, 1.0)
        low, high = (factor, high) if float(found.mean()) < share else (low, factor)
    return (high * norms).clamp(floor, 1.0)
