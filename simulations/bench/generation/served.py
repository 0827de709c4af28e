"""A model behind TLS and a node key, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.generation import Credentials, DraftPace, ServerConnection, Writer
from clients.owner import Door, OwnerTerms
from fedlora.errors import FedloraError
from fedlora.generation.admission import Admission
from fedlora.generation.listener import GenerationListener
from fedlora.generation.server import GenerationServer
from fedlora.generation.usage import Usage
from fedlora.launch.keys import write_keys
from fedlora.link.stream import read_known_devices, read_node_key
from fedlora.link.stream.tls import read_identity
from fedlora.lora.export import Adapter
from simulations.bench.generation.bed import Bed


class ServedBed(Bed):
    """A model that listens on loopback.

    Parameters
    ----------
    path
        Scenario path of the model.
    certs
        Folder of the keys, which are made if need be.
    adapter
        Folder of the adapter; None for one that changes nothing.
    """

    def __init__(self, path: str, certs: Path, adapter: Path | None = None) -> None:
        super().__init__(path)
        if adapter is not None:
            self.engine.load(Adapter.load(adapter))
        if not certs.exists():
            write_keys(certs, ["localhost"], 1)
        self._certs = certs
        self._server = GenerationServer(
            self.engine, self.scenario, self.identity, default=self.full_ranks
        )
        identity = read_identity(certs / "server.pem", certs / "server.key")
        self.listener = GenerationListener(
            self._server,
            self._admission(identity.certificate_pem),
            Usage(self.scenario, self._server),
            "127.0.0.1",
            0,
            identity=identity,
            max_frame_bytes=self.scenario.link.max_frame_mib << 20,
        )

    @contextlib.contextmanager
    def writer(self, port: int, pace: DraftPace) -> Iterator[Writer]:
        """Give a device whose stream is open; nobody else asks meanwhile."""
        with writer_over_tls(self, self._certs, port, pace) as found:
            yield found

    def end(self) -> None:
        """End the listener and the server's thread."""
        self.listener.stop(0.0)
        self._server.end()

    def _admission(self, certificate_pem: bytes) -> Admission:
        link, known = self.scenario.link, read_known_devices(self._certs)
        return Admission(link, self.engine.geometry, known, certificate_pem)


@contextlib.contextmanager
def writer_over_tls(bed: Bed, certs: Path, port: int, pace: DraftPace) -> Iterator[Writer]:
    """Give a device that has a model's two ends and a stream to a server of its blocks.

    Parameters
    ----------
    bed
        The model.
    certs
        Folder of the keys.
    port
        The server's, on loopback.
    pace
        How long drafts are.
    """
    key = read_node_key(certs / "node0")
    credentials = Credentials((certs / "ca.crt").read_bytes(), key)
    door, link, geometry = Door(OwnerTerms()), bed.scenario.link, bed.engine.geometry
    way = ServerConnection((f"localhost:{port}",), credentials, door, link, geometry)
    way.connect()
    try:
        yield Writer(bed.text_ends(), bed.row(way.ask, way.client), (), pace)
    finally:
        way.close()


@dataclass(frozen=True)
class ServerProcess:
    """A model that is served from a process of its own.

    Attributes
    ----------
    port
        On loopback.
    """

    port: int
    _process: subprocess.Popen[str]

    def processor_s(self) -> float:
        """Return the processor time of all its threads so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextlib.contextmanager
def server_process(path: str, certs: Path, adapter: Path) -> Iterator[ServerProcess]:
    """Serve a model from a process of its own.

    Parameters
    ----------
    path, certs, adapter
        As for ``ServedBed``.

    Raises
    ------
    FedloraError
        When the process ends before it listens.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, path, str(certs), str(adapter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            told = process.stdout.readline().strip()
            if not told.isdecimal():
                process.wait()
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                raise FedloraError(f"the server's process ended with {process.returncode}: {last}")
            yield ServerProcess(int(told), process)
        finally:
            process.kill()
            process.communicate()


def main() -> None:
    """Serve what the command line names, and tell its processor time for each line of input."""
    path, certs, adapter = sys.argv[1:]
    bed = ServedBed(path, Path(certs), Path(adapter))
    print(bed.listener.port, flush=True)
    for _ in sys.stdin:
        print(time.process_time(), flush=True)
    bed.end()


if __name__ == "__main__":
    main()
