"""What is said of a process that was ended from outside: which one, why most probably, the mend.

Linux ends a process by signal 9 when memory is short, and Ray's memory monitor ends workers before
it comes to that. Neither leaves the process a word, so what is known is gathered around it. What
is said fits in a client's reason (``fedlora.reasons``), which is cut at 300 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

MEND = (
    "set compute.edge_hosts, train.batch_size, task.max_length or federation.clients lower, or "
    'compute.checkpoint = true, or model.dtype = "bf16"'
)
_VMSTAT = Path("proc/vmstat")
_UNLIMITED = 1 << 60  # bytes; control groups of version 1 write the largest number of pages
_MONITOR = re.compile(r"Memory on the node.*? was (.*?, which exceeds .*? threshold of [\d.]+)")
_DIED = ("worker process has died", "ActorDiedError", "WorkerCrashedError", "NodeDiedError")
_DETAIL = re.compile(r"Worker exit detail: (.{,200}?)\.?(?: Some common causes|'>|$)")
_CUT_OFF = "connection error"  # which Ray says of a process that left it no word


@dataclass(frozen=True)
class Memory:
    """The memory that this process and those beside it have.

    Attributes
    ----------
    whose
        Whose limit it is.
    limit, used
        In bytes; what is used is what was used at most, where the system tells.
    kills
        Processes that the kernel has ended for it so far; None where the system does not tell.
    """

    whose: str
    limit: int
    used: int
    kills: int | None


def memory(root: Path = Path("/")) -> Memory:
    """Return the memory of the control group that limits this process, or of the machine.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    for folder in _groups(root):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            used = _number(folder, "memory.peak", "memory.max_usage_in_bytes", "memory.current")
            kills = _counted(folder / "memory.events", folder / "memory.oom_control")
            return Memory("its control group", limit, used or 0, kills)
    now = psutil.virtual_memory()
    return Memory("the machine", now.total, now.total - now.available, _counted(root / _VMSTAT))


def ended(who: str, before: Memory | None = None) -> str:
    """Return the sentence for a process that is gone without a word.

    Parameters
    ----------
    who
        Which process.
    before
        The memory when the run began.
    """
    now = memory()
    kills = (now.kills or 0) - (before.kills or 0) if before is not None else 0
    counted = f", and the kernel has ended {kills} for memory since the run began" * (kills > 0)
    return (
        f"{who} was ended without a word, as by signal 9; most probably memory ran out: "
        f"{now.whose} has {_gib(now.limit)} GiB, {_gib(now.used)} GiB are taken{counted}; {MEND}"
    )


def ended_by_ray(who: str, said: str, before: Memory | None = None) -> str:
    """Return the sentence for a worker whose end Ray tells of; nothing where it tells of none.

    Parameters
    ----------
    who, before
        See ``ended``.
    said
        Ray's error as text.
    """
    words = " ".join(said.split())
    monitor = _MONITOR.search(words)
    if monitor or "OutOfMemoryError" in words:
        at = f" ({monitor[1]})" if monitor else ""
        return f"{who} was ended by Ray's memory monitor{at}; {MEND}"
    if not any(sign in words for sign in _DIED):
        return ""
    detail = _DETAIL.search(words)
    if detail and _CUT_OFF not in detail[1]:
        return f"{who} has ended (Ray: {detail[1]}), and a simulation does not go on without it"
    return ended(who, before)


def _groups(root: Path) -> Iterator[Path]:
    """Yield this process's control groups that may limit memory, its own before those around."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _number(folder: Path, *names: str) -> int | None:
    """Return the number in the first of these files that has one."""
    for name in names:
        try:
            return int((folder / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def _counted(*files: Path) -> int | None:
    """Return how many processes were ended, from the first of these tables that says it."""
    for file in files:
        try:
            rows = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError):
            continue
        found = [int(row[1]) for row in rows if len(row) == 2 and row[0] == "oom_kill"]
        if found:
            return found[0]
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
