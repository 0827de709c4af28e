"""Mechanisms as plug-ins: found by ``privacy.release``, and their faults told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import torch

from fedlora import registry
from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError, described, shown
from fedlora.privacy.mechanisms.base import Mechanism
from fedlora.privacy.mechanisms.full import Full
from fedlora.privacy.mechanisms.labels import Labels
from fedlora.privacy.mechanisms.logits import Logits
from fedlora.privacy.mechanisms.row_space import RowSpace

SHIPPED: Final[Mapping[str, type[Mechanism]]] = MappingProxyType(
    {"full": Full, "row_space": RowSpace, "logits": Logits, "labels": Labels}
)
"""fedlora's own, which owners of devices rely on: no package can register another by their names.

All others are found as ``fedlora.mechanisms`` or as ``module:Class``; a device uses one of them
only where its owner has allowed it.
"""


def mechanism_class(name: str) -> type[Mechanism]:
    """Return the class that ``privacy.release`` names.

    Raises
    ------
    FedloraError
        When there is none, or it is no mechanism.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    found: type[Mechanism] = registry.resolve("mechanisms", name, Mechanism, besides=SHIPPED)
    check_kind(found)
    return found


def check_kind(cls: type[Mechanism]) -> None:
    """Refuse a class that would have gradients, and heads trained on true labels, leave exactly.

    Raises
    ------
    FedloraError
        When ``noises_gradients`` is false though labels are not randomised, or the reverse.
    """
    if cls.noises_gradients == issubclass(cls, Labels):
        wanted = "inherit from Labels, or leave it true" if not cls.noises_gradients else "leave it"
        raise FedloraError(
            f"{cls.__name__}.noises_gradients is {cls.noises_gradients}, and only a mechanism that "
            f"randomises labels adds no noise; {wanted}"
        )


def mechanism_of(policy: PrivacyPolicy) -> Mechanism | None:
    """Return a policy's mechanism; None where privacy is off.

    Raises
    ------
    FedloraError
        As ``mechanism_class``, and when it cannot be made.
    """
    if not policy.enabled:
        return None
    cls = mechanism_class(policy.release)
    try:
        return cls(policy)
    except FedloraError:
        raise
    except Exception as error:
        raise FedloraError(
            f"privacy.release is {shown(policy.release)}, which cannot be made with a policy alone "
            f"({described(error)}); mend the plug-in"
        ) from error


@contextmanager
def blaming(mechanism: Mechanism) -> Iterator[None]:
    """Turn whatever a mechanism raises into a ``FedloraError`` that names it."""
    try:
        yield
    except FedloraError:
        raise
    except Exception as error:
        raise FedloraError(f"{_named(mechanism)} fails ({described(error)}); mend it") from error


def asked(
    mechanism: Mechanism,
    method: str,
    shape: Sequence[int],
    *arguments: object,
    finite: bool = True,
) -> torch.Tensor:
    """Return what a mechanism's method returns; see ``blaming`` and ``shaped``."""
    with blaming(mechanism):
        return shaped(
            mechanism, method, getattr(mechanism, method)(*arguments), shape, finite=finite
        )


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
