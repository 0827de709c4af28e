"""The unit files, the compose file and the commands of docs/deploy.md are ones that work."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import yaml

from fedlora.commands.certs import write_certificates

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n|^\n)+", PAGE, re.MULTILINE)]
TOOLS = ("flower-superlink", "flower-supernode")
KIT = Path(__file__).parents[2] / "fedlora" / "scaffold" / "templates" / "kit"
PASSIVE = "OMP_WAIT_POLICY=PASSIVE"


@cache
def options(tool: str) -> set[str]:
    """Return the options that one of Flower's tools has."""
    command = [Path(sys.executable).with_name(tool), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", text))


def unknown(command: str) -> set[str]:
    """Return a command's options that its tool does not have."""
    words = shlex.split(command.replace("\\\n", " "))
    tool = next(Path(word).name for word in words if Path(word).name in TOOLS)
    return {word for word in words if word.startswith("--")} - options(tool)


def starts(blocks: list[str]) -> list[str]:
    """Return the lines that start one of Flower's tools."""
    return [
        line.strip()
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(ExecStart=)?(\w+=\S+ )*\S*flower-super(link|node) ", line.strip())
    ]


def test_commands_have_only_options_that_flower_has():
    commands = starts(BLOCKS)
    assert len(commands) >= 4
    assert {flag for command in commands for flag in unknown(command)} == set()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_unit_starts_its_tool_again(tool):
    [text] = [b for b in BLOCKS if "[Unit]" in b and tool in b]
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    service = unit["Service"]
    program, *_ = shlex.split(service["ExecStart"])
    assert Path(program).name == tool
    assert str(Path(program).parent) in service["Environment"] + text
    assert service["Restart"] in ("always", "on-failure")
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_compose_file_publishes_what_the_stream_needs():
    [text] = [b for b in BLOCKS if "services:" in b]
    service = yaml.safe_load(text)["services"]["superlink"]
    assert unknown(service["command"]) == set()
    assert service["environment"]["FLWR_TELEMETRY_ENABLED"] == "0"
    ports = {port.split(":")[-1] for port in service["ports"]}
    assert {"8000", "9000"} == ports
    assert "link.port=9000" in PAGE.replace(" ", "") or "port = 9000" in PAGE


def test_in_every_documented_start_waiting_threads_do_not_spin(tmp_path):
    texts = [block for block in BLOCKS if "[Unit]" in block or "services:" in block]
    commands = starts([block for block in BLOCKS if block not in texts])
    printed = write_certificates(tmp_path, ["host"], 1).splitlines()
    commands += [line.strip() for line in printed if "flower-super" in line]
    assert len(commands) >= 4 and all(line.startswith(PASSIVE) for line in commands), commands
    assert all(re.search("OMP_WAIT_POLICY[=:] ?PASSIVE", text) for text in texts)
    scripts = [path.read_text() for path in KIT.glob("*-start.jinja")]
    assert len(scripts) == 2 and all(f"\n{PASSIVE} " in text for text in scripts)


def test_an_app_that_is_started_otherwise_sets_it_before_torch_is_loaded():
    code = (
        "import os, sys, clients.app, fedlora.server.app; "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=bare)
    assert done.stdout.split() == ["PASSIVE", "False"]
