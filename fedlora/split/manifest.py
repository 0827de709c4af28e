"""The manifest of an edge package: of which whole checkpoint it is a part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora.errors import FedloraError

FILE = "edge.json"
_FORMAT = 1


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
    """

    weights_digest: str
    edge_digest: str
    client_front: int = 0
    client_back: int = 0

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
        return Manifest(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FedloraError(
            f"{path} cannot be read ({error}); make the package anew with fedlora slice"
        ) from None
