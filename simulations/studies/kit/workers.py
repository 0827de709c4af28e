"""Processes that share out the trials of a study."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from fedlora.terminal import leave_out_chatter


@contextmanager
def worker_pool(
    workers: int, begin: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes, which are ended at once when the block is left by an error.

    They end as soon as this process has, however it ends.

    Parameters
    ----------
    workers
        How many; 0 means one for each core.
    begin, arguments
        Called in each process before its first task.
    """
    # Threads that wait do not spin on cores that the other processes want.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # which would cross the study's own
    # A forked process would inherit threads that no longer run.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes(workers), context, _begin, (begin, arguments))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def processes(workers: int) -> int:
    """Return how many processes are meant; 0 means one for each core."""
    return workers or os.cpu_count() or 1


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    leave_out_chatter()
    if begin is not None:
        begin(*arguments)


def _end_with_the_study() -> None:
    """End this process when the one that started it is gone: idle, it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
