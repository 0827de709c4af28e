"""State on disk: one safetensors file for a tree of values and tensors, replaced as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fedlora.errors import FedloraError
from fedlora.storage.files import replace_file
from fedlora.storage.tree import State, pack_state, unpack_state

_TREE = "fedlora"
_NAME = re.compile(r"round-(\d{6})\.safetensors")


def write_state(path: Path, state: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a state aside, sync it and rename it into place.

    Parameters
    ----------
    path
        The file.
    state
        As ``fedlora.ranks.pack_state`` takes it; the tree goes into the file's metadata as JSON.
    private
        Whether nobody but this user may read it.
    """
    tree, tensors = pack_state(state)
    metadata = {_TREE: json.dumps(tree, allow_nan=False)}
    replace_file(path, safetensors.torch.save(tensors, metadata), private=private)


def read_state(path: Path) -> State:
    """Return what ``write_state`` wrote; tuples have become lists.

    Raises
    ------
    FedloraError
        When the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise FedloraError(f"{path} cannot be read ({error}); use an earlier checkpoint") from None
    return unpack_state(tree, tensors)


class RoundStates:
    """States at the end of rounds in a folder; the last few are kept.

    Parameters
    ----------
    folder
        Where the files ``round-NNNNNN.safetensors`` are.
    kept
        Number of rounds to keep.
    private
        Whether nobody but this user may read them.
    """

    def __init__(self, folder: Path, kept: int = 2, *, private: bool = False) -> None:
        self.folder = folder
        self.kept = kept
        self._private = private

    def write(self, round_: int, state: Mapping[str, Any]) -> None:
        """Write a round's state, and only then remove what is too old."""
        write_state(self._path(round_), state, private=self._private)
        for old in self.rounds()[self.kept :]:
            self._path(old).unlink(missing_ok=True)

    def rounds(self) -> list[int]:
        """Return the rounds that are there, the last first."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def read(self, round_: int) -> State:
        """Return the state of one round; raises ``FedloraError`` when it cannot be read."""
        return read_state(self._path(round_))

    def readable(self) -> Iterator[tuple[int, State]]:
        """Yield the rounds whose state can be read, the last first."""
        for round_ in self.rounds():
            try:
                state = self.read(round_)
            except FedloraError:
                continue
            yield round_, state

    def forget_after(self, round_: int) -> None:
        """Remove the states of later rounds, which are about to be repeated."""
        for later in self.rounds():
            if later > round_:
                self._path(later).unlink(missing_ok=True)

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:06d}.safetensors"


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return the moments and counters of an optimiser, by the number of the parameter."""
    if optimizer is None:
        return {}
    return {str(place): dict(own) for place, own in optimizer.state_dict()["state"].items()}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer | None, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Take back what ``optimizer_state`` gave.

    Raises
    ------
    FedloraError
        When it is of other parameters.
    """
    parameters = (
        [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    )
    for place, own in state.items():
        known = place.isdecimal() and int(place) < len(parameters)
        shapes = {tuple(value.shape) for value in own.values() if value.dim()}
        if not known or shapes - {tuple(parameters[int(place)].shape)}:
            raise FedloraError(
                "optimiser state is of another head; resume with the scenario that began the run"
            )
    if optimizer is not None:
        optimizer.load_state_dict(
            {
                "state": {int(place): dict(own) for place, own in state.items()},
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )


@torch.no_grad()
def load_tensors(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors of the same names and shapes into their place.

    Raises
    ------
    FedloraError
        When a name or a shape differs.
    """
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        raise FedloraError("the state is of another head; resume with the scenario of the run")
    for name, tensor in own.items():
        tensor.copy_(state[name])
