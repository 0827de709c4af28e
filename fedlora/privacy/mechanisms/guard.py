"""A plug-in's faults in one sentence: what it raises, and what it returns in another shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fedlora.checks import shown
from fedlora.errors import FedloraError
from fedlora.printable import described
from fedlora.privacy.mechanisms.base import Mechanism


@contextmanager
def blaming(mechanism: Mechanism) -> Iterator[None]:
    """Turn whatever a mechanism raises into a ``FedloraError`` that names it."""
    try:
        yield
    except FedloraError:
        raise
    except Exception as error:
        raise FedloraError(f"{_named(mechanism)} fails ({described(error)}); mend it") from error


def shaped(
    mechanism: Mechanism, method: str, found: object, shape: Sequence[int], *, finite: bool = True
) -> torch.Tensor:
    """Return what a mechanism's method returned, which has to be of a shape, and finite.

    Raises
    ------
    FedloraError
        When it is another, or something else.
    """
    if not isinstance(found, torch.Tensor):
        problem = f"a {type(found).__name__}"
    elif tuple(found.shape) != tuple(shape):
        problem = f"shape {tuple(found.shape)}"
    elif not found.is_floating_point() or (finite and not bool(found.isfinite().all())):
        problem = "numbers that are not finite floats"
    else:
        return found
    raise FedloraError(
        f"{_named(mechanism)} returns {problem} from {method}; expected finite floats of shape "
        f"{tuple(shape)}"
    )


def _named(mechanism: Mechanism) -> str:
    return f"privacy.release {shown(mechanism.policy.release)} ({type(mechanism).__name__})"
