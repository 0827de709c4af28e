"""Which linear modules carry an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedlora.errors import FedloraError, shown
from fedlora.split import Checkpoint, Cut, empty_model, find_family

ALL_LINEAR = "all-linear"


def choose_targets(
    linear: Sequence[str], wanted: Sequence[str], everywhere: Sequence[str] = ()
) -> list[str]:
    """Return the names of the modules to adapt, in the order of ``linear``.

    Parameters
    ----------
    linear
        Names of all linear modules of the server's blocks.
    wanted
        The scenario's ``lora.targets``: ends of names, or ``all-linear`` alone.
    everywhere
        Those of the clients' blocks too, for the error message.

    Raises
    ------
    FedloraError
        When one of them names no linear module.
    """
    if tuple(wanted) == (ALL_LINEAR,):
        return list(linear)
    chosen: set[str] = set()
    for target in wanted:
        matches = [name for name in linear if _named(name, target)]
        away = [name for name in everywhere if _named(name, target)]
        if not matches and away:
            raise FedloraError(
                f"lora.targets names {shown(target)}, which model.client_front or "
                "model.client_back leaves to the clients, whose blocks carry no LoRA; lower it, or "
                "name modules of other blocks"
            )
        if not matches:
            suffixes = sorted({name.rpartition(".")[2] for name in linear})
            raise FedloraError(
                f"lora.targets names {shown(target)}, which matches no linear module of the "
                f"server's blocks; choose from {', '.join(suffixes)} or {ALL_LINEAR}"
            )
        chosen.update(matches)
    return [name for name in linear if name in chosen]


def targets_among(linear: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``lora.targets`` that name any of these modules."""
    return tuple(t for t in wanted if t == ALL_LINEAR or any(_named(name, t) for name in linear))


def _named(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def linear_modules(checkpoint: Checkpoint, cut: Cut) -> list[str]:
    """Return a checkpoint's names of the linear modules of the server's blocks.

    They are the blocks' matrices, in the order of the files; nothing is loaded to find them.
    """
    inside = re.compile(rf"(?:^|\.){re.escape(find_family(checkpoint).layers)}\.(\d+)\..+\.weight$")
    held = range(cut.start, cut.stop)
    return [
        name.removesuffix(".weight")
        for name, entry in checkpoint.entries.items()
        if len(entry.shape) == 2 and (found := inside.search(name)) and int(found[1]) in held
    ]


def in_model_order(names: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """Return a checkpoint's names of linear modules in the order that the model has them in.

    A rank strategy on the server sees the projections so, and gives what is left of a budget to the
    first that it fits. The model is made without memory.
    """
    inside = re.compile(rf"(?:^|\.){re.escape(find_family(checkpoint).layers)}\.(\d+\..+)$")
    places = {
        found[1]: place
        for place, (name, _) in enumerate(empty_model(checkpoint).named_modules())
        if (found := inside.search(name))
    }

    def place(name: str) -> int:
        found = inside.search(name)
        assert found is not None  # as ``linear_modules`` finds them
        return places[found[1]]

    return sorted(names, key=place)
