"""``fedlora kit``: one archive for each site of a deployment, and one for the server."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.commands.options import OverwriteOption
from fedlora.errors import FedloraError

if TYPE_CHECKING:
    from fedlora.scaffold.kit import Entry

_ACTIVE = {"partition-id", "num-partitions", "scenario-data", "data", "model", "state"}
_ACTIVE |= {"privacy-ledger"}
_WIDTH = 96


def kit(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    host: Annotated[
        list[str],
        typer.Option("--host", help="Name or address that sites dial; may be given repeatedly."),
    ],
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=10000, help="Number of sites.")],
    model: Annotated[
        str,
        typer.Option(help="A whole model, or an edge package of it, that goes into the archives."),
    ] = "",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The SuperLink's port, as sites dial it.")
    ] = 8000,
    stream_port: Annotated[
        int, typer.Option(min=1, max=65535, help="`link.port` of the runs to come.")
    ] = 9000,
    home: Annotated[
        str, typer.Option(help="Folder where archives are unpacked, with `.venv` in it.")
    ] = "/srv/fedlora",
    days: Annotated[
        int, typer.Option(min=1, max=36500, help="Days until the certificates end.")
    ] = 365,
    overwrite: OverwriteOption = False,
) -> None:
    """Make one archive for each site: keys, unit, node configuration, start and doctor commands.

    `site K` gets `fedlora-siteK.tar.gz`, the server `fedlora-server.tar.gz`; each holds what is
    secret to it and to nobody else, and says what that is. The authority's own key stays in `keys`
    here. A second call with `--overwrite` and more nodes keeps all keys.
    """
    from fedlora.launch.keys import (
        AUTHORITY,
        AUTHORITY_KEY,
        SERVER,
        SERVER_KEY,
        write_keys,
    )
    from fedlora.link.stream import address_of
    from fedlora.scaffold.kit import SERVER as SERVER_FOLDER, Kit, site_folder
    from fedlora.storage import check_new_file

    _check_home(home)
    if host[0].startswith("*"):
        raise FedloraError(f"--host is {host[0]!r} first; name what sites dial before any pattern")
    folders = [site_folder(node) for node in range(nodes)]
    for name in (SERVER_FOLDER, *folders):
        check_new_file(_archive(out, name), "--out", overwrite=overwrite)
    keys = out / "keys"
    write_keys(keys, host, nodes, valid_days=days)
    package = _package(model, out) if model else None
    parts = Kit(
        host=host[0],
        address=address_of(host[0], port),
        port=port,
        stream_port=stream_port,
        home=home.rstrip("/"),
        keys=list(_commented()),
        package=package,
    )
    authority = (keys / AUTHORITY).read_bytes()
    public = [(keys / f"node{node}.pub").read_bytes() for node in range(nodes)]
    certificate, secret = (keys / SERVER).read_bytes(), (keys / SERVER_KEY).read_bytes()
    _write(out, SERVER_FOLDER, parts.server(authority, certificate, secret, public))
    for node, name in enumerate(folders):
        secret = (keys / f"node{node}").read_bytes()
        _write(out, name, parts.site(node, authority, secret))
    typer.echo(
        f"wrote {_archive(out, SERVER_FOLDER)} for the server, and an archive for each of {nodes} "
        f"sites, {_archive(out, folders[0])} to {_archive(out, folders[-1]).name}.\n"
        "SECRET: each archive holds a private key (mode 0600): hand it to its own site alone, over "
        f"a way that nobody else reads. {keys / AUTHORITY_KEY} goes to nobody.\n"
        f"A site: tar -xzf {folders[0]}.tar.gz -C {parts.home}, then edit node.toml, then ./doctor "
        "and ./start; README.txt says so in full."
    )


def _archive(out: Path, name: str) -> Path:
    return out / f"{name}.tar.gz"


def _write(out: Path, name: str, entries: Sequence[Entry]) -> None:
    from fedlora.scaffold.kit import archive
    from fedlora.storage import replace_file

    replace_file(_archive(out, name), archive(name, entries), private=True)


def _package(model: str, out: Path) -> Path:
    """Return an edge package of the model, which is made unless it is one."""
    from fedlora.split import Checkpoint, model_folder, slice_checkpoint

    source = model_folder(model)
    if Checkpoint(source).manifest is not None:
        return source
    slice_checkpoint(source, out / "package", overwrite=True)
    return out / "package"


def _check_home(home: str) -> None:
    """Refuse a folder that scripts and units would need quotes for."""
    plain = home.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    if not home.startswith("/") or not plain.isalnum() or not plain.isascii():
        raise FedloraError(
            f"--home is {home!r}; write a whole path of letters, digits, '-', '_' and '.', such as "
            "/srv/fedlora"
        )


def _commented() -> Iterator[str]:
    """Yield each further key of a node configuration as comments, with a shared meaning once."""
    from fedlora.commands.keys import node_keys

    further = [key for key in node_keys() if key.name not in _ACTIVE]
    for meaning, keys in itertools.groupby(further, lambda key: key.meaning):
        lines = textwrap.wrap(meaning.replace("``", ""), _WIDTH)
        lines += [f"{key.name} = {_example(key.default)}" for key in keys]
        yield "\n".join(f"# {line}" for line in lines)


def _example(default: str) -> str:
    return default if _is_number(default) else json.dumps(default)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
