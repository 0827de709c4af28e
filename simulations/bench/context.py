"""What every experiment is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulations.bench.models import model_path
from simulations.bench.settings import Settings

Tick = Callable[[], None]


@dataclass(frozen=True)
class Context:
    """Sizes, and where models of random weights are kept between experiments."""

    settings: Settings
    folder: Path

    def model(self, name: str) -> str:
        """Return the scenario path of a model."""
        return model_path(name, self.folder, tiny=self.settings.tiny)
