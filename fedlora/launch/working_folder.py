"""Where a run was started, from which relative paths of plug-ins and data begin.

Flower's processes are started in an empty folder of their own, as Ray puts the one that it is
started in before all libraries of its workers. Who needs relative paths goes back when Ray is up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

_STARTED_IN = "FEDLORA_STARTED_IN"


def started_here() -> Mapping[str, str]:
    """Return what tells processes that a run was started where this one stands."""
    return {_STARTED_IN: os.getcwd()}


def is_told() -> bool:
    """Tell whether this process was told where the run was started."""
    return _STARTED_IN in os.environ


def go_where_started() -> None:
    """Go to where the run was started, if this process was told and it is still there."""
    with contextlib.suppress(OSError, KeyError):
        os.chdir(os.environ[_STARTED_IN])
