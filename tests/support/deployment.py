"""A whole deployment on loopback, as ``fedlora rehearse`` starts it, with what tests do to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from fedlora.launch.deployment import Deployment as RealDeployment
from support.patience import patient

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
START_S = 90.0
UNTOLD = (
    "FEDLORA_STARTED_IN"  # without it a server checks the scenario itself, as on its own machine
)


class Deployment(RealDeployment):
    """A SuperLink with TLS and node authentication, and its SuperNodes; all ended at the end.

    Parameters
    ----------
    folder
        For keys, logs and Flower's homes.
    keys
        Nodes for which keys are made.
    """

    def __init__(self, folder: Path, keys: int = 3) -> None:
        super().__init__(folder, keys, {"OMP_NUM_THREADS": "1"})
        self.flower.environment.pop(UNTOLD)

    def __enter__(self) -> Deployment:
        super().__enter__()
        return self

    def supernode(self, node: int, config: str, **environment: str) -> None:
        """Start a SuperNode with its key; without data of its own it reads the scenario's."""
        if "data=" not in config:
            config += ' scenario-data="true"'
        if "state=" not in config:
            config += f' state="{self.states(node)}"'
        self.start_node(node, config, environment)

    def restart(self, node: int, config: str) -> None:
        """End a SuperNode and start it again with another configuration."""
        self.stop_node(node)
        self.supernode(node, config)

    def supernode_comes_up(self, node: int) -> None:
        """Start a SuperNode until the SuperLink takes it, as its service unit does."""
        before = self.connections(node)

        def up() -> bool:
            self.look_after(0.5)
            return self.connections(node) > before

        self.until(up, f"node {node}", 240)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line."""
        return subprocess.run(
            [TOOLS / "flwr", *arguments],
            env=self.flower.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(START_S),
            check=False,
        )

    def run(self, scenario: Path, out: Path) -> None:
        """Submit a run of the checkout, as docs/deploy.md says."""
        done = self.flwr(
            "run", ".", "fedlora", "--run-config", f'scenario="{scenario}" out="{out}"'
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ended(self, out: Path, timeout_s: float) -> dict[str, str]:
        """Wait until a run has ended; return its last event."""
        found: dict[str, str] = {}

        def over() -> bool:
            found.update(last_event(out))
            return found.get("event") == "done"

        self.until(over, f"the end of the run in {out}", timeout_s)
        return found

    def until(self, condition, what: str, timeout_s: float = START_S) -> None:
        """Wait for a condition; fail with everybody's last words when it does not come."""
        deadline = time.monotonic() + patient(timeout_s)
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come in time\n{self.words()}"
            time.sleep(0.5)

    def words(self) -> str:
        """Return the last lines of every log."""
        logs = sorted(self.folder.rglob("*.txt"))
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in logs)


def last_event(out: Path) -> dict[str, str]:
    """Return the last event of a run folder."""
    events = sorted(out.glob("*events*"))
    if not events:
        return {}
    lines = events[0].read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}
