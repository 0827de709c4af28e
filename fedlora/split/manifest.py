"""The manifest of an edge package: of which whole checkpoint it is a part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora.errors import FedloraError

FILE = "edge.json"
_FORMAT = 1


@dataclass(frozen=True)
class Conformity:
    """How far a checkpoint's ends are from Hugging Face's, with no block between them.

    Attributes
    ----------
    transformers
        Release that they were compared with.
    states
        Relative difference of what comes out of the base model.
    logits
        Relative difference of the logits; None where the checkpoint has no language head.
    """

    transformers: str
    states: float
    logits: float | None


@dataclass(frozen=True)
class Manifest:
    """What an edge package says of itself.

    Attributes
    ----------
    weights_digest
        ``Checkpoint.weights_digest`` of the whole checkpoint.
    edge_digest
        The same digest over the package's own tensors.
    client_front, client_back
        Blocks before and after the cut that the package holds.
    conformity
        How the whole checkpoint compared; None in packages of earlier releases.
    """

    weights_digest: str
    edge_digest: str
    client_front: int = 0
    client_back: int = 0
    conformity: Conformity | None = None

    def write(self, folder: Path) -> None:
        """Write the manifest into a package's folder."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a model folder, or None when it holds a whole checkpoint.

    Raises
    ------
    FedloraError
        When the manifest is damaged or of another release's form.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            raise ValueError("it is of another format")
        found = values.pop("conformity", None)
        return Manifest(**values, conformity=Conformity(**found) if found else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FedloraError(
            f"{path} cannot be read ({error}); make the package anew with fedlora slice"
        ) from None
