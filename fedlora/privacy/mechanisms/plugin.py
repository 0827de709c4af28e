"""Mechanisms as plug-ins: found by ``privacy.release``, and their faults told in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Final

import torch

from fedlora import blame, registry
from fedlora.checks import positive
from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError, shown
from fedlora.privacy.accounting import Charge
from fedlora.privacy.mechanisms.base import Gradients, Mechanism
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
        made = cls(policy)
    except FedloraError:
        raise
    except (Exception, SystemExit) as error:
        raise FedloraError(
            f"privacy.release is {shown(policy.release)}, which cannot be made with a policy alone "
            f"({blame.place_in_plugin(error)}); mend the plug-in"
        ) from error
    if getattr(made, "policy", None) is not policy:
        raise FedloraError(
            f"privacy.release {shown(policy.release)} has lost its policy in __init__(); let that "
            "call super().__init__(policy)"
        )
    return made


def blaming(mechanism: Mechanism) -> AbstractContextManager[None]:
    """Turn whatever a stranger's mechanism raises into a ``FedloraError`` that names it."""
    if blame.is_ours(type(mechanism)):  # asked at each upload of a sample
        return nullcontext()
    return blame.blaming(_named(mechanism), type(mechanism))


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


def numbers_of(mechanism: Mechanism, classes: int, width: int) -> int:
    """Return how many numbers of each row are uploaded; see ``Mechanism.width``.

    Raises
    ------
    FedloraError
        When the mechanism says no whole number of at least 1.
    """
    with blaming(mechanism):
        found: object = mechanism.width(classes, width)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise FedloraError(
            f"{_named(mechanism)} returns {shown(found)} from width; expected a whole number from 1"
        )
    return found


def charge_of(mechanism: Mechanism, sigma: float) -> Charge:
    """Return what an upload at this noise costs; see ``Mechanism.charge``.

    Raises
    ------
    FedloraError
        When the mechanism says no charge, or one that no plan of uploads counts.
    """
    with blaming(mechanism):
        found: object = mechanism.charge(sigma)
    if not isinstance(found, Charge) or not found.rho:
        raise FedloraError(
            f"{_named(mechanism)} returns {shown(found)} from charge; expected a Charge with rho"
        )
    return found


def gradients_of(
    mechanism: Mechanism,
    uploaded: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor | None,
    sigma: float,
) -> Gradients:
    """Return what a server makes of a release; see ``Mechanism.gradients`` and ``shaped``.

    Numbers may be beyond what floats hold, as an upload is a peer's.
    """
    with blaming(mechanism):
        found: object = mechanism.gradients(uploaded, z, weight, sigma)
    if not isinstance(found, Gradients):
        raise FedloraError(
            f"{_named(mechanism)} returns {shown(found)} from gradients; expected Gradients"
        )
    cut, head = shaped(mechanism, "gradients", found.cut, z.shape, finite=False), found.head
    if weight is not None:
        head = shaped(mechanism, "gradients", head, weight.shape, finite=False)
    return Gradients(cut, None if weight is None else head)


def check_words(mechanism: Mechanism) -> None:
    """Refuse a mechanism of which no report could be written when the run has ended.

    Raises
    ------
    FedloraError
        When it does not say what it covers and excludes, or what a sample left out costs.
    """
    with blaming(mechanism):
        said: dict[str, object] = {"covers": mechanism.covers(), "excludes": mechanism.excludes()}
        zero_out: object = mechanism.zero_out
    for name, found in said.items():
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise FedloraError(
                f"{_named(mechanism)} returns {shown(found)} from {name}; expected a list of texts"
            )
    positive(f"zero_out of {_named(mechanism)}", zero_out)


def probe_of(mechanism: Mechanism, z: torch.Tensor, *arguments: object) -> torch.Tensor | None:
    """Return a draw of a mechanism's noise at the cut; see ``Mechanism.probe`` and ``shaped``."""
    with blaming(mechanism):
        found: object = mechanism.probe(z, *arguments)  # type: ignore[arg-type]
    return None if found is None else shaped(mechanism, "probe", found, z.shape)


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
