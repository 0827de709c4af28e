"""``fedlora doctor``: what is wrong with this machine, and the mend."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedlora.commands.finding import Finding
from fedlora.errors import FedloraError
from fedlora.import_path import ROOT, hidden_libraries
from fedlora.launch.temporary import parent_folder, temporary_folder

_PACKAGES = ("flwr", "ray", "torch", "transformers", "peft", "opacus", "grpcio", "safetensors")
_MEMORY_GIB, _DISK_GIB = 3.0, 2.0


def doctor(
    server: Annotated[
        str, typer.Option(help="On a device: HOST[:PORT] of the SuperLink to look at as well.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(help="The authority's certificate, `ca.crt`.")
    ] = None,
    stream_port: Annotated[
        int, typer.Option(help="`link.port` of the runs to come, to look at as well.")
    ] = 0,
    model: Annotated[
        str, typer.Option(help="This machine's model or edge package, to look at as well.")
    ] = "",
    node_key: Annotated[
        Path | None, typer.Option(help="A device's private key, to look at as well.")
    ] = None,
    node_config: Annotated[
        str,
        typer.Option(
            help="A device's node configuration, as `flower-supernode` takes it (pairs, or a "
            "`.toml` file), to look at with its data, model and folders as well."
        ),
    ] = "",
) -> None:
    """Say what is wrong with this machine, and how to mend it.

    With `--server`, run on a device: also whether the server's ports, certificate and clock serve.
    With `--node-key` and `--node-config`: also whether its key, its data (columns, labels, rows),
    its model and its folders do. Status 1 where anything needs mending.
    """
    from fedlora.commands.deploy.doctor_site import examine_key, examine_node
    from fedlora.commands.doctor_server import examine_model, examine_server

    findings = [
        *(examine_server(server, root_certificates, stream_port) if server else ()),
        *(examine_key(node_key) if node_key else ()),
        *(examine_node(node_config) if node_config else ()),
        *(examine_model(model) if model else ()),
    ]
    raise typer.Exit(0 if examine(findings) else 1)


def examine(further: Iterable[Finding] = ()) -> bool:
    """Print every finding of this machine and what else was found; False when one needs mending."""
    from rich.console import Console  # here, as all commands import this file
    from rich.table import Table
    from rich.text import Text

    findings = list(itertools.chain(*(check() for check in _CHECKS), further))
    well = not any(finding.mend for finding in findings)
    table = Table("", title="fedlora doctor")
    for name in ("what", "found") if well else ("what", "found", "mend"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        mark = "[red]✗[/red]" if finding.mend else "[green]✓[/green]"
        cells = (finding.what, finding.found, *(() if well else (finding.mend,)))
        table.add_row(mark, *map(Text, cells))
    Console().print(table)
    return well


def _python() -> Iterator[Finding]:
    found = sys.version.split()[0]
    good = sys.version_info >= (3, 11)
    yield Finding("Python", found, "" if good else "install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    from importlib import metadata

    for name in _PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", "pip install fedlora")


def _tools() -> Iterator[Finding]:
    for name in ("flwr", "flower-superlink"):
        path = Path(sys.executable).with_name(name)
        mend = (
            ""
            if path.exists()
            else "reinstall flwr in this environment: pip install --force-reinstall flwr"
        )
        yield Finding(f"command {name}", str(path), mend)


def _shadowed() -> Iterator[Finding]:
    for package in ("clients", "strategies", "simulations"):
        spec = importlib.util.find_spec(package)
        place = Path(spec.origin).parent if spec and spec.origin else None
        good = place is not None and str(place.parent.resolve()) == ROOT
        mend = f"rename your folder {place}: it hides fedlora's package"
        yield Finding(f"package {package}", str(place), "" if good else mend)
    for library, hiding in hidden_libraries():
        mend = f"rename {hiding}, or take it off PYTHONPATH"
        yield Finding(f"library {library}", f"hidden by {hiding}", mend)


def _loopback() -> Iterator[Finding]:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            with socket.create_connection(server.getsockname()[:2], timeout=2):
                yield Finding("loopback sockets", "work")
    except OSError as error:
        yield Finding("loopback sockets", str(error), "allow TCP on 127.0.0.1 (check the firewall)")
    proxy = os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY")
    bypass = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    bad = bool(proxy) and "127.0.0.1" not in bypass
    mend = "export no_proxy=127.0.0.1,localhost, or Flower's requests go to the proxy"
    yield Finding("proxy", proxy or "none", mend if bad else "")


def _resources() -> Iterator[Finding]:
    import psutil

    cores = os.cpu_count() or 1
    yield Finding("CPU cores", str(cores))
    memory = psutil.virtual_memory().available / 2**30
    mend = "" if memory >= _MEMORY_GIB else f"free memory: a simulation needs {_MEMORY_GIB:g} GiB"
    yield Finding("memory available", f"{memory:.1f} GiB", mend)
    shm = Path("/dev/shm")
    if shm.exists():
        free = shutil.disk_usage(shm).free / 2**30
        mend = (
            ""
            if free > 0.1
            else "enlarge /dev/shm, where Ray keeps objects (docker: --shm-size=1g)"
        )
        yield Finding("/dev/shm free", f"{free:.1f} GiB", mend)
    yield _disk(Path.cwd())
    try:
        wanted, used = temporary_folder(), parent_folder()
    except FedloraError as error:
        reason, _, mend = str(error).rpartition("; ")
        yield Finding("temporary files", reason, mend)
        return
    named = os.environ.get("TMPDIR")
    if named and os.path.abspath(named) != wanted:
        mend = "set it to a folder that is there and writable, or unset it"
        yield Finding("TMPDIR", f"{named} takes no files; {wanted} is used", mend)
    if used != wanted:
        found = (
            f"TMPDIR has {len(wanted)} characters, which leave the sockets of Ray no room: fedlora "
            f"run uses {used}; for flwr run set RAY_TMPDIR={used}"
        )
        yield Finding("temporary files", found)
    yield _disk(Path(used))


def _disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free / 2**30
    mend = "" if free >= _DISK_GIB else f"free {_DISK_GIB:g} GiB in {place}"
    if not os.access(place, os.W_OK):
        mend = f"make {place} writable, or start elsewhere"
    return Finding(f"disk at {place}", f"{free:.1f} GiB free", mend)


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", str(error), "reinstall torch")
        return
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        yield Finding("GPU", f"{name}; use --set compute.device=cuda:0")
    else:
        yield Finding("GPU", "none; the CPU is used")
    yield Finding("model.weights", _forms())


def _forms() -> str:
    """Say in which forms a server here can keep its blocks' matrices."""
    from fedlora.split import LIBRARIES, check_form

    found = ["fp32"]
    for form in ("bf16", "int8", "nf4"):
        try:
            check_form(form, "cpu")
            found.append(form)
        except FedloraError:
            library = LIBRARIES.get(form)
            mend = f" (needs fedlora[{library}])" if library else ""
            found.append(f"not {form}{mend}")
    return ", ".join(found)


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _tools,
    _shadowed,
    _loopback,
    _resources,
    _device,
)
