"""One archive for each site of a deployment, and one for the server, from the templates."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SERVER = "fedlora-server"
_OPEN, _SECRET, _PROGRAM = 0o644, 0o600, 0o755
_FOLDER, _SECRET_FOLDER = 0o755, 0o700
RUNTIME_PORT = 9094
"""Where Flower's SuperNode speaks with what it starts, unless told otherwise."""


@dataclass(frozen=True)
class Entry:
    """A file of an archive.

    Attributes
    ----------
    name
        Its path in the archive's folder.
    data
        What is in it.
    mode
        Its permissions.
    """

    name: str
    data: bytes
    mode: int = _OPEN


@dataclass(frozen=True)
class Kit:
    """What the archives of a deployment say.

    Attributes
    ----------
    host, address, port
        Name of the server, with the SuperLink's port as clients dial it, and that port.
    stream_port
        ``link.port`` of the runs to come.
    home
        The folder in which archives are unpacked, with ``.venv`` in it.
    keys
        Further keys of the node configuration, each as commented lines.
    package
        Folder of the edge package that sites are given; None where they have it otherwise.
    """

    host: str
    address: str
    port: int
    stream_port: int
    home: str
    keys: Sequence[str]
    package: Path | None = None

    def site(self, node: int, authority: bytes, key: bytes) -> list[Entry]:
        """Return the files of a site, which are for nobody else.

        Parameters
        ----------
        node
            Its number.
        authority
            The authority's certificate.
        key
            The site's private key.
        """
        folder = site_folder(node)
        told: dict[str, Any] = {"node": node, "folder": folder, "runtime_port": RUNTIME_PORT + node}
        return [
            self._file("README.txt", "site-readme", **told),
            Entry("ca.crt", authority),
            Entry(f"secret/node{node}", key, _SECRET),
            self._file("node.toml", "site-node", **told),
            self._file("start", "site-start", _PROGRAM, **told),
            self._file("doctor", "site-doctor", _PROGRAM, **told),
            self._file(f"{folder}.service", "site-unit", **told),
            *self._package(),
        ]

    def server(
        self, authority: bytes, certificate: bytes, key: bytes, public_keys: Sequence[bytes]
    ) -> list[Entry]:
        """Return the server's files: its certificate and key, and the sites' public keys."""
        return [
            self._file("README.txt", "server-readme"),
            Entry("ca.crt", authority),
            Entry("server.pem", certificate),
            Entry("secret/server.key", key, _SECRET),
            *(Entry(f"nodes/node{node}.pub", public) for node, public in enumerate(public_keys)),
            self._file("start", "server-start", _PROGRAM),
            self._file("register", "server-register", _PROGRAM),
            self._file("flwr/config.toml", "server-config"),
            self._file("fedlora-superlink.service", "server-unit"),
        ]

    def _file(self, name: str, template: str, mode: int = _OPEN, **told: Any) -> Entry:
        environment = Environment(
            loader=PackageLoader("fedlora.scaffold", "templates/kit"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        text = environment.get_template(f"{template}.jinja").render(**vars(self), **told)
        return Entry(name, text.encode(), mode)

    def _package(self) -> Iterator[Entry]:
        if self.package is not None:
            for path in sorted(p for p in self.package.rglob("*") if p.is_file()):
                name = path.relative_to(self.package).as_posix()
                yield Entry(f"package/{name}", path.read_bytes())


def site_folder(node: int) -> str:
    """Return the name of a site's folder, and of its archive and service."""
    return f"fedlora-site{node}"


def archive(folder: str, entries: Sequence[Entry]) -> bytes:
    """Return the archive of a folder as ``.tar.gz``; what is secret is so once it is unpacked."""
    packed, now = io.BytesIO(), int(time.time())
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        folders = {str(parent) for e in entries for parent in Path(e.name).parents}
        for name in sorted(folders):
            info = tarfile.TarInfo(f"{folder}/{name}" if name != "." else folder)
            info.type, info.mtime = tarfile.DIRTYPE, now
            info.mode = _SECRET_FOLDER if name == "secret" else _FOLDER
            tar.addfile(info)
        for entry in entries:
            info = tarfile.TarInfo(f"{folder}/{entry.name}")
            info.size, info.mode, info.mtime = len(entry.data), entry.mode, now
            tar.addfile(info, io.BytesIO(entry.data))
    return packed.getvalue()
