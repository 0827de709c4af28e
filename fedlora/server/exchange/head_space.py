"""``link.r_cut``: the directions alone that a common head can tell apart cross the cut.

The head W of K classes is one linear map, and the softmax of its logits W z does not change when a
number is added to all of them. So in an orthonormal basis V of the vectors that sum to zero (see
``fedlora.privacy.mechanisms.head_releases``) t = V^T W z, of K - 1 numbers, has all that a client
needs: V t are the logits up to such a number. The gradient by t is a = V^T u, where u = p - y sums
to zero, so u = V a: the gradient at the cut is W^T u, and the head's own is the sum of u z^T. The
server knows z and W exactly, so nothing is lost, and neither W nor its gradient travels.

======  ============================================================
``z``   representation of the rows, shape (rows, d)
``W``   weight of the head, shape (K, d)
``V``   ``zero_sum_basis``, shape (K, K - 1)
``a``   what a client answers, shape (rows, K - 1)
======  ============================================================
"""

from __future__ import annotations

import torch

from fedlora.privacy.mechanisms import zero_sum_basis


def coordinates(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what comes down in place of a representation.

    Parameters
    ----------
    z
        Shape (rows, width).
    weight
        The head's, shape (classes, width).

    Returns
    -------
    torch.Tensor
        Shape (rows, classes - 1), fp32, on the CPU.
    """
    w = weight.detach().cpu().double()
    return (z.detach().cpu().double() @ (w.T @ zero_sum_basis(len(w)))).float()


def gradients(
    answered: torch.Tensor, z: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient at the cut, and the unreduced one of the head.

    Parameters
    ----------
    answered
        A client's gradient by what came down, shape (rows, classes - 1).
    z, weight
        See ``coordinates``.

    Returns
    -------
    tuple
        Shapes (rows, width) and (classes, width), fp32, on the CPU.
    """
    w = weight.detach().cpu().double()
    u = answered.double() @ zero_sum_basis(len(w)).T
    return (u @ w).float(), (u.T @ z.detach().cpu().double()).float()
