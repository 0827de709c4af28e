"""Curves of a run for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.observe.curves import Curves
from fedlora.observe.extras import missing


class TensorBoard(Curves):
    """Writes scalars.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """See ``Curves``."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See ``Curves``."""
        self._writer.flush()


@contextmanager
def tensorboard(folder: Path) -> Iterator[TensorBoard]:
    """Open a writer; raises ``FedloraError`` when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing("tensorboard") from None
    writer = SummaryWriter(str(folder))
    try:
        yield TensorBoard(writer)
    finally:
        writer.close()
