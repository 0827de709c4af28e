"""A network that loses packets changes no bit; where the kernel can lose them (netem)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.patience import patient
from test_deploy_sessions import letter, letters, tiny, train  # noqa: F401  # a fixture

import fedlora.server.flower.sessions

LOSS = ("delay", "25ms", "5ms", "loss", "2%")


def run(*command: str) -> str:
    """Run a command; return what it complained of, nothing if it worked."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"status {done.returncode}" if done.returncode else ""


@contextmanager
def lossy_namespace() -> Iterator[str]:
    """Make a network namespace whose loopback delays, reorders and loses packets."""
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("needs iproute2 (ip, tc)")
    name = f"fedlora-{uuid.uuid4().hex[:8]}"
    if complaint := run("ip", "netns", "add", name):
        pytest.skip(f"no network namespace can be made here: {complaint}")
    inside = ("ip", "netns", "exec", name)
    try:
        assert not run(*inside, "ip", "link", "set", "lo", "up")
        if complaint := run(*inside, "tc", "qdisc", "add", "dev", "lo", "root", "netem", *LOSS):
            pytest.skip(f"this kernel loses no packets (netem): {complaint}")
        yield name
    finally:
        run("ip", "netns", "del", name)


@pytest.mark.e2e
def test_lost_packets_change_no_bit(tmp_path):
    for folder in ("lossy", "plain"):
        (tmp_path / folder).mkdir()
    with lossy_namespace() as name:
        paths = str(Path(__file__).parents[1])
        done = subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, __file__, tmp_path / "lossy"],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(300),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    _, whole, _ = train(tiny(), tmp_path / "plain")
    found = load_file(tmp_path / "lossy" / "adapter.safetensors")
    expected = adapter(whole)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def adapter(server):
    return {name: t.contiguous() for name, t in server.engine.adapter().items()}


if __name__ == "__main__":
    fedlora.server.flower.sessions.Message = letter
    out = Path(sys.argv[1])
    _, server, _ = train(tiny(), out)
    save_file(adapter(server), out / "adapter.safetensors")
