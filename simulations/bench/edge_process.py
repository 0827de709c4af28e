"""A client's own process, as a measurement starts it; reports its memory and imports at the end.

Reads one JSON line: ``kind`` (``device``: one client with its own data; ``host``: several simulated
clients; ``echo``: answers every frame with its tensors; ``idle``: opens streams and does nothing)
and what it needs. Devices and echoes stop when the server ends the session, the others when their
input ends.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from simulations.bench.machine import loaded, memory_mib

HEAVY = ("transformers", "peft", "ray", "datasets", "flwr")


def device(session: dict[str, Any], node_config: dict[str, Any]) -> dict[str, Any]:
    """Take part as one client; return seconds to import, and what went wrong."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    from clients.device import take_part

    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    from fedlora.link import told

    error = told(take_part(session, node_config))
    return {"error": error, "import_seconds": seconds, "import_cpu_seconds": cpu_seconds}


def host(sessions: list[dict[str, Any]]) -> dict[str, Any]:
    """Host simulated clients, as an actor of Flower's simulation does, until the input ends."""
    from clients.edge_host import EdgeHost
    from fedlora.link import told

    edge_host = EdgeHost(sessions[0])
    errors = [told(edge_host.attach(session["client"], session["token"])) for session in sessions]
    sys.stdin.read()
    return {"error": "; ".join(error for error in errors if error)}


def main() -> None:
    """Do what the first line of the input says, and print what it cost."""
    order = json.loads(sys.stdin.readline())
    for session in order["sessions"]:
        session["certificate"] = session["certificate"].encode()
    facts = _play(order["kind"], order["sessions"], order["node_config"])
    facts["peak_mib"] = memory_mib("VmHWM")
    facts["heavy"] = loaded(HEAVY)
    print(json.dumps(facts), flush=True)


def _play(kind: str, sessions: list[dict[str, Any]], node_config: dict[str, Any]) -> dict[str, Any]:
    if kind == "device":
        return device(sessions[0], node_config)
    if kind == "host":
        return host(sessions)
    from simulations.bench.stream import peers  # here, so that a device's imports are its own

    if kind == "echo":
        peers.echo(sessions[0])
    else:
        peers.idle(sessions)
    return {"error": ""}


if __name__ == "__main__":
    main()
