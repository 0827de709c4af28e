"""Runs a federation of real processes over TLS of which one is killed once, at a named step.

``python -m support.killed_once SCENARIO FOLDER VICTIM STEP``: the victim is ``engine`` or a number
of a client; it kills itself with SIGKILL when it has been at so many steps; nobody with step 0. It
is started again at once. Prints where the run's folder is.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clients.state_store import ClientStateStore
from fedlora.link import messages as m
from fedlora.server.training import Training
from support.kills import CLIENTS, LIMIT_S, Federation, edge, engine, fork
from support.patience import patient


class KilledOnce(Federation):
    """One run and its processes."""

    def __init__(self, text: str, home: Path, victim: Any, step: int) -> None:
        self._text, self._victim, self._step = text, victim, step
        super().__init__(home, 0, random.Random(0))

    def start_engine(self) -> int:
        work = self._dying("engine", lambda: engine(self.post, self.out, self._text))
        return fork(work, self.home / "engine.txt")

    def start_edge(self, client: int) -> int:
        work = self._dying(client, lambda: edge(self.post, self.home, client))
        return fork(work, self.home / f"edge-{client}.txt")

    @property
    def killed(self) -> Path:
        """Is there once the victim has died."""
        return self.home / "killed"

    def _dying(self, who: Any, work: Callable[[], None]) -> Callable[[], None]:
        if who != self._victim or not self._step or self.killed.exists():
            return work
        count = [0]

        def die() -> None:
            count[0] += 1
            if count[0] == self._step:
                self.killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def until_it_dies() -> None:
            kind, name = (Training, "_on_step") if who == "engine" else (ClientStateStore, "handle")
            genuine = getattr(kind, name)

            def watched(self: Any, *arguments: Any) -> Any:
                if who == "engine" or arguments[0].kind == m.STEP:
                    die()
                return genuine(self, *arguments)

            setattr(kind, name, watched)
            work()

        return until_it_dies

    def look_after(self) -> int | None:
        """Start again who has died of the kill; return the engine's exit status once it is over."""
        child, status = os.waitpid(self.engine, os.WNOHANG)
        if child and os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self.start_again("engine")
        elif child:
            return os.waitstatus_to_exitcode(status)
        for client, own in list(self.edges.items()):
            if os.waitpid(own, os.WNOHANG)[0]:
                self.start_again(client)
        return None


def main() -> None:
    text, home, victim = Path(sys.argv[1]).read_text(), Path(sys.argv[2]), sys.argv[3]
    home.mkdir()
    torch.set_num_threads(1)
    who: Any = int(victim) if victim.isdigit() else victim
    assert who == "engine" or who in range(CLIENTS)
    federation = KilledOnce(text, home, who, int(sys.argv[4]))
    code, began = None, time.monotonic()
    while code is None and time.monotonic() - began < patient(LIMIT_S):
        code = federation.look_after()
        time.sleep(0.01)
    federation.end()
    if code is None:
        os.kill(federation.engine, signal.SIGKILL)
    assert code == 0, "\n".join(path.read_text()[-3000:] for path in home.glob("*.txt"))
    print(federation.out)


if __name__ == "__main__":
    main()
