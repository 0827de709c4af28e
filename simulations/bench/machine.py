"""What a figure depends on besides the code: the machine, its load, the versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("fedlora", "torch", "transformers", "peft", "grpcio", "safetensors", "flwr")
MIB = 1 << 20


def machine_facts() -> dict[str, Any]:
    """Return cores, torch threads, memory, load, and versions, as JSON values."""
    import psutil
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def memory_mib(field: str, pid: int | str = "self") -> float:
    """Return a size from Linux's process status in MiB, such as ``VmHWM`` (peak) or ``VmRSS``.

    ``getrusage`` will not do for the peak: across fork and exec it keeps the parent's.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {field}")


def loaded(packages: tuple[str, ...]) -> list[str]:
    """Return which of some packages this process has imported."""
    return [name for name in packages if name in sys.modules]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
