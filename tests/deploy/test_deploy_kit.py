"""The archive of a site: its own secret and no other's, and files that start what they say."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args
from support.deployment import ROOT, TOOLS, last_event
from support.patience import patient
from typer.testing import CliRunner

from fedlora.cli import app
from fedlora.commands.keys import node_keys
from fedlora.config import NodeKeys
from fedlora.errors import FedloraError
from fedlora.launch.guarded import free_port

SITES = 2
SCENARIO = """
name = "tiny"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
labels = ["alpha", "beta"]
[federation]
clients = 2
min_clients = 2
[train]
rounds = 4
steps = 20
batch_size = 2
[head]
share = "step"
[lora]
r_max = 2
[evaluate]
baseline = false
[link]
give_up_s = 3
"""


def make(out: Path, home: Path | str, *more: str) -> str:
    words = ["kit", "--out", str(out), "--host", "127.0.0.1", "--home", str(home), *more]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Two sites' archives and the server's, and where they are unpacked."""
    home = tmp_path_factory.mktemp("srv")
    out = tmp_path_factory.mktemp("out") / "kits"
    port, stream = free_port(), free_port()
    model = "package:simulations/quickstart/decoder"
    ports = ("--port", str(port), "--stream-port", str(stream))
    said = make(out, home, "--nodes", str(SITES), "--model", model, *ports)
    for archive in out.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # from Python 3.11.4 on
            tar.extractall(home)
    return SimpleNamespace(out=out, home=home, said=said, port=port, stream=stream)


def test_each_archive_holds_one_private_key_its_own_and_only_its_owner_reads_it(kits):
    keys = kits.out / "keys"
    owners = {"fedlora-server": "server.key"} | {f"fedlora-site{k}": f"node{k}" for k in range(2)}
    assert sorted(p.name for p in kits.out.glob("*.gz")) == [f"{o}.tar.gz" for o in sorted(owners)]
    for owner, key in owners.items():
        archive = kits.out / f"{owner}.tar.gz"
        assert archive.stat().st_mode & 0o777 == 0o600
        with tarfile.open(archive) as tar:
            files = {m.name: (m, tar.extractfile(m).read()) for m in tar if m.isfile()}
            folders = {m.name: m.mode for m in tar if m.isdir()}
        secret = [name for name, (_, data) in files.items() if b"PRIVATE KEY" in data]
        assert secret == [f"{owner}/secret/{key}"]
        member, data = files[secret[0]]
        assert member.mode == 0o600 and folders[f"{owner}/secret"] == 0o700
        assert data == (keys / key).read_bytes()
        assert f"secret/{key}" in files[f"{owner}/README.txt"][1].decode()
    site = load_ssh_private_key((kits.home / "fedlora-site1/secret/node1").read_bytes(), None)
    public = (kits.home / "fedlora-server/nodes/node1.pub").read_bytes()
    assert site.public_key() == load_ssh_public_key(public)
    assert "hand it to its own site alone" in kits.said and "ca.key goes to nobody" in kits.said


def test_a_sites_node_configuration_is_one_and_explains_every_further_key(kits):
    path = kits.home / "fedlora-site1" / "node.toml"
    read = parse_config_args([str(path)])
    keys = NodeKeys.read(read)
    assert keys.partition_id == 1 and Path(keys.model).is_dir()
    lines = path.read_text().splitlines()
    named = {line.removeprefix("# ").split(" = ")[0] for line in lines if " = " in line}
    every = {key.name for key in node_keys()} - {"num-partitions", "scenario-data"}
    assert every <= named


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
def test_systemd_takes_the_units(kits):
    for unit in kits.home.rglob("*.service"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        if "Failed to initialize manager" in done.stderr:
            pytest.skip("systemd cannot look at units here")
        assert f"{unit.name}:" not in done.stderr, done.stderr


def test_a_second_call_keeps_the_keys_and_replaces_archives_only_where_told_to(tmp_path):
    make(tmp_path, "/srv/fedlora", "--nodes", "1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    again = ["kit", "--out", str(tmp_path), "--host", "127.0.0.1", "--nodes", "2"]
    with pytest.raises(FedloraError, match="--overwrite"):
        CliRunner().invoke(app, again, catch_exceptions=False)
    make(tmp_path, "/srv/fedlora", "--nodes", "2", "--overwrite")
    after = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    assert before.items() <= after.items() and "node1" in after
    assert (tmp_path / "fedlora-site1.tar.gz").exists()


@pytest.mark.parametrize("home", ["srv/fedlora", "/srv/my fedlora", "/srv/$(id)", "/"])
def test_a_home_that_scripts_would_need_quotes_for_is_refused(tmp_path, home):
    with pytest.raises(FedloraError, match="--home is"):
        make(tmp_path, home, "--nodes", "1")
    assert list(tmp_path.iterdir()) == []


class Site:
    """A kit's ``start``, held by what its unit says of starting it again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".txt")
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read_string(next(folder.glob("*.service")).read_text())
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"
        assert unit["Service"]["Restart"] == "always"
        self.restart_s = float(unit["Service"]["RestartSec"])
        self.start = unit["Service"]["ExecStart"]
        self.starts, self.due = 0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.due = time.monotonic() + self.restart_s
        elif time.monotonic() >= self.due:
            self.process = started(self.start, self.log)
            self.starts += 1

    def taken(self) -> int:
        return self.log.read_text().count("SuperNode ID")

    def kill(self) -> None:
        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            process.kill()
        self.process.wait()


def started(program: str | Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FEDLORA_VENV": str(TOOLS.parent), "PYTHONPATH": str(ROOT)}
    with log.open("ab") as words:
        return subprocess.Popen(
            [program], stdout=words, stderr=words, env=environment, start_new_session=True
        )


@pytest.mark.slow
@pytest.mark.e2e
def test_two_sites_of_one_machine_start_from_their_kits_and_a_killed_one_comes_back(kits, tmp_path):
    server, sites = kits.home / "fedlora-server", []
    for k in range(SITES):
        sites.append(Site(kits.home / f"fedlora-site{k}"))
        rows = [f"say {k} {i},{('alpha', 'beta')[i % 2]}" for i in range(30)]
        data = kits.home / f"own{k}.csv"
        data.write_text("\n".join(["text,label", *rows]) + "\n")
        config = sites[k].folder / "node.toml"
        text = config.read_text().replace(f"{kits.home}/data/train.csv", str(data))
        for name in ("text", "label"):
            text = text.replace(f'# {name} = ""', f'{name} = "{name}"')
        config.write_text(text)
    running = started(server / "start", log := kits.home / "server.txt")
    try:
        until(lambda: "Uvicorn running" in log.read_text() or listens(kits.port), log)
        done = subprocess.run(
            [server / "register"],
            env={**os.environ, "FEDLORA_VENV": str(TOOLS.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "known already" not in done.stdout
        examined = subprocess.run(
            [sites[0].folder / "doctor"],
            env={**os.environ, "FEDLORA_VENV": str(TOOLS.parent), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "30 records" in examined.stdout and "2: " in examined.stdout, examined.stdout
        for site in sites:
            site.tend()
        (tmp_path / "tiny.toml").write_text(SCENARIO + f"port = {kits.stream}\n")
        out = tmp_path / "run"
        subprocess.run(
            [
                *(TOOLS / "flwr", "run", ROOT, "fedlora", "--run-config"),
                f'scenario="{tmp_path / "tiny.toml"}" out="{out}"',
            ],
            env={**os.environ, "FLWR_HOME": str(server / "flwr")},
            check=True,
            capture_output=True,
        )
        until((out / "metrics.jsonl").exists, log, *(s.log for s in sites))
        sites[1].kill()

        def over() -> bool:
            for site in sites:
                site.tend()
            return last_event(out).get("event") == "done"

        until(over, log, *(s.log for s in sites))
        assert last_event(out)["status"] == "finished", log.read_text()
        assert sites[1].taken() == 2 and sites[1].starts >= 2
        assert sites[0].starts == 1
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        assert {name: own["rows"] for name, own in last["clients"].items()} == {"0": 40, "1": 40}
    finally:
        for process in (*(s.process for s in sites if s.process), running):
            with_all(process)


def listens(port: int) -> bool:
    return any(c.laddr.port == port for c in psutil.net_connections("tcp") if c.status == "LISTEN")


def with_all(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its descendants."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        for member in psutil.wait_procs(family, timeout=5)[1]:
            member.kill()
    process.wait()


def until(condition, *logs: Path, limit_s: float = 240) -> None:
    deadline = time.monotonic() + patient(limit_s)
    while not condition():
        words = "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)
        assert time.monotonic() < deadline, words
        time.sleep(0.5)
