"""Federated split fine-tuning of language models with LoRA, over links that fade.

From Python: ``fedlora.run``, ``fedlora.resume``, ``fedlora.open_run`` and ``fedlora.scenario``, see
``fedlora.api``; ``FedloraError`` is what they raise.
"""

from importlib import import_module
from typing import Any

from fedlora.errors import FedloraError

__version__ = "0.1.0"
__all__ = ["FedloraError", "open_run", "resume", "run", "scenario"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first used: commands need little of it."""
    if name in __all__:
        return getattr(import_module("fedlora.api"), name)
    raise AttributeError(f"module 'fedlora' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that there are, for completion."""
    return sorted({*globals(), *__all__})
