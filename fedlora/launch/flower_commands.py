"""Flower's own commands, given to one SuperLink on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.import_path import children_environment
from fedlora.launch.app_folder import quoted
from fedlora.launch.temporary import for_ray
from fedlora.launch.working_folder import started_here
from fedlora.machine import stretch

TOOLS = Path(sys.executable).parent
_START_S = 180.0  # on a loaded machine each of Flower's processes takes tens of seconds
_CONNECTION = "fedlora"
_NO_DETAILS = "N/A"  # what Flower shows in their place
_WORDS_S = 30.0

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Its log is read as UTF-8 here, whatever the terminal is.
    "PYTHONIOENCODING": "utf-8",
    # Server and edge hosts take turns: whoever waits must not spin on a core that the other needs,
    # and Ray's niceness of 15 would let the hosts starve beside whatever else the machine does.
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_worker_niceness": "0",
    # Flower's workers have an environment of their own, so none that is started ahead serves them.
    "RAY_prestart_worker_first_driver": "0",
}


def start_s() -> float:
    """Return how long Flower's processes may take to start on this machine, in seconds."""
    return _START_S * stretch()


class FlowerCommands:
    """What Flower's command line is told and answers, in a FLWR_HOME of its own.

    Parameters
    ----------
    home
        The folder that is FLWR_HOME.

    Attributes
    ----------
    environment
        Of Flower's processes.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        # Flower starts its helpers by name, also where the virtual environment is not activated.
        path = f"{TOOLS}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # Flower's parts speak HTTP on loopback, which no proxy can carry.
        direct = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy")]))
        # A run has a Ray of its own, also where the shell knows of a cluster's.
        inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.environment = {
            **inherited,
            **_QUIET,
            **children_environment(),
            **started_here(),
            **for_ray(str(home)),
            **{"FLWR_HOME": str(home), "PATH": path, "no_proxy": direct, "NO_PROXY": direct},
        }

    def connect(self, port: int, authority: Path | None = None) -> None:
        """Let the commands speak to the SuperLink on a port of loopback.

        Parameters
        ----------
        port
            Where it listens.
        authority
            The certificate of who has signed its own; None speaks without TLS.
        """
        trust = "insecure = true"
        if authority is not None:
            trust = f"root-certificates = {quoted(authority)}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
            f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\n{trust}\n',
            encoding="utf-8",
        )

    def submit(self, app: Path, clients: int = 0) -> str:
        """Give a run to the SuperLink and return its number.

        Parameters
        ----------
        app
            The folder of its app.
        clients
            How many are simulated; 0 in a deployment.

        Raises
        ------
        FedloraError
            When it is not taken, or not in time.
        """
        settings = (
            f"num-supernodes={clients} client-resources-num-cpus=1 "
            f"init-args-num-cpus={max(2, os.cpu_count() or 1)} init-args-log-to-driver=false"
        )
        words = ["run", str(app), _CONNECTION]
        return self._told(
            [*words, "--federation-config", settings] if clients else words, "run-id", "the run"
        )

    def register(self, public_key: Path) -> str:
        """Make a node's key known to the SuperLink and return the node's number.

        Raises
        ------
        FedloraError
            When it is not taken, or not in time.
        """
        words = ["supernode", "register", str(public_key), _CONNECTION]
        return self._told(words, "node-id", f"the key {public_key}")

    def _told(self, words: list[str], wanted: str, what: str) -> str:
        try:
            said = self._ask(words, limit_s := start_s())
        except subprocess.TimeoutExpired:
            raise FedloraError(
                f"Flower did not take {what} within {limit_s:.0f} s; end other work on this "
                "machine and try again"
            ) from None
        found = _object(said.stdout)
        if not found.get(wanted):
            why = str(found.get("error-message") or said.stderr).strip().splitlines()[-1:]
            raise FedloraError(f"Flower did not take {what} ({' '.join(why)})")
        return str(found[wanted])

    def details(self, run_id: str) -> str:
        """Return why a run ended, as far as the SuperLink knows."""
        with contextlib.suppress(subprocess.TimeoutExpired, LookupError, TypeError):
            said = self._ask(["list", _CONNECTION, "--run-id", run_id], _WORDS_S)
            details = str(_object(said.stdout)["runs"][0]["status-details"]).strip()
            return "" if details == _NO_DETAILS else details
        return ""

    def log(self, run_id: str) -> str:
        """Return what the process that simulates a run has told the SuperLink."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._run(["log", run_id, _CONNECTION, "--show"], _WORDS_S).stdout
        return ""

    def _ask(self, words: list[str], time_s: float) -> subprocess.CompletedProcess[str]:
        return self._run([*words, "--format", "json"], time_s)

    def _run(self, words: list[str], time_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(TOOLS / "flwr"), *words],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=time_s,
            check=False,
        )


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that a command said, or an empty one."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}
