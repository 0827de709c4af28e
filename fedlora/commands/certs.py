"""``fedlora certs``: the keys of a deployment, and the commands that use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from fedlora.launch.keys import AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY, write_keys
from fedlora.link.stream import address_of


def write_certificates(
    out: Path, hosts: Sequence[str], nodes: int, *, valid_days: int = 365, port: int = 8000
) -> str:
    """Write the keys of a deployment.

    Parameters
    ----------
    out, hosts, nodes, valid_days
        See ``fedlora.launch.keys.write_keys``; the first host goes into the commands.
    port
        The SuperLink's port, for the commands.

    Returns
    -------
    str
        The commands that start server, nodes and a run with these keys.

    Raises
    ------
    FedloraError
        See ``fedlora.launch.keys.write_keys``.
    """
    write_keys(out, hosts, nodes, valid_days=valid_days)
    return commands(out, hosts[0], nodes, port)


def commands(out: Path, host: str, nodes: int, port: int) -> str:
    """Return the commands that start a deployment with the keys in a folder."""
    address = address_of(host, port)
    folder = out.resolve()
    keys = "\n".join(
        f"  flwr supernode register {folder / f'node{node}.pub'} fedlora" for node in range(nodes)
    )
    return f"""\
On the server:
  OMP_WAIT_POLICY=PASSIVE flower-superlink --host 0.0.0.0 --port {port} --enable-supernode-auth \\
    --ssl-ca-certfile {folder / AUTHORITY} --ssl-certfile {folder / SERVER} \\
    --ssl-keyfile {folder / SERVER_KEY} --disable-runtime-dependency-installation

Where runs are started, in $FLWR_HOME/config.toml (by default ~/.flwr/config.toml):
  [superlink.fedlora]
  address = "{address}"
  root-certificates = "{folder / AUTHORITY}"

There, once for each node:
{keys}

On device K, with {AUTHORITY} and nodeK copied to it (and no other file):
  OMP_WAIT_POLICY=PASSIVE flower-supernode --superlink {address} --root-certificates {AUTHORITY} \\
    --auth-supernode-private-key nodeK \\
    --host 127.0.0.1 --port $((9094 + K)) \\
    --node-config 'partition-id=K data="/path/to/train.jsonl" model="/path/to/package"'

Each device, before the first run:
  fedlora doctor --server {address} --root-certificates {AUTHORITY} --node-key nodeK \\
    --node-config 'partition-id=K data="/path/to/train.jsonl" model="/path/to/package"'

A run, in a checkout of fedlora (scenario and out are paths on the server):
  flwr run . fedlora --stream --run-config 'scenario="/path/to/scenario.toml" out="/path/to/run"'

Keep {AUTHORITY_KEY} off the server and the devices.\
"""


def print_certificates(out: Path, hosts: Sequence[str], nodes: int, days: int, port: int) -> None:
    """Write the keys and print the commands."""
    typer.echo(write_certificates(out, hosts, nodes, valid_days=days, port=port))
