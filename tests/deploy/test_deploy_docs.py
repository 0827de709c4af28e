"""The unit files, the compose file and the commands of docs/deploy.md are ones that work."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n|^\n)+", PAGE, re.MULTILINE)]
TOOLS = ("flower-superlink", "flower-supernode")


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


def test_commands_have_only_options_that_flower_has():
    commands = [
        line
        for block in BLOCKS
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(ExecStart=)?\S*flower-super(link|node) ", line.strip())
    ]
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
