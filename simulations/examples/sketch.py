"""A privacy mechanism of one's own: noise on a public sketch of the gradient.

The gradient at the cut is projected onto k directions that follow from a public seed, so a record
uploads k numbers and the noise has k dimensions. The rows of the projection are orthonormal: no
gradient becomes longer, and clipping comes after it in any case. So the sensitivity is 2 C and the
Gaussian charge that is inherited holds. What lies outside of the k directions is lost; the server
gives the sketch back as a gradient in all dimensions.

    fedlora run quickstart-private --set privacy.release=simulations.examples.sketch:Sketch
    python -m simulations.examples.sketch
"""

from __future__ import annotations

from functools import cache

import torch

from fedlora.privacy.mechanisms import Mechanism, check_mechanism


@cache
def directions(width: int, numbers: int) -> torch.Tensor:
    """Return orthonormal columns that everybody knows, shape (width, numbers), float64."""
    generator = torch.Generator().manual_seed(width)  # public: a choice of coordinates, no noise
    drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
    basis: torch.Tensor = torch.linalg.qr(drawn).Q
    return basis[:, :numbers]


class Sketch(Mechanism):
    """Clips and noises a quarter of the coordinates of a random basis."""

    part = 4

    def width(self, classes: int, width: int) -> int:
        """Return how many numbers of a gradient's row are uploaded."""
        return max(1, width // self.part)

    def values(self, gradient: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Return the sketch, which is clipped and noised next."""
        width = gradient.shape[1]
        return gradient.double() @ directions(width, self.width(0, width))

    def cut(self, message: torch.Tensor, weight: torch.Tensor | None, width: int) -> torch.Tensor:
        """Return the gradient in all dimensions that a sketch stands for."""
        return message @ directions(width, message.shape[1]).T


if __name__ == "__main__":
    print("\n".join(check_mechanism(Sketch)) or "Sketch is sound")
