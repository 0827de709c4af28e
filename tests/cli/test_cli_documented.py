"""Every command that README and docs show is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedlora.cli import app
from fedlora.commands.keys import scenario_keys
from fedlora.scenarios import scenario_names
from fedlora.verbs import add_all_verbs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown(page: Path) -> list[str]:
    """Return the command lines in code blocks that begin with fedlora."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```|((?:^ {4}.*\n)+)", text, re.MULTILINE | re.DOTALL)
    joined = "\n".join(fenced or indented for fenced, indented in blocks)
    lines = re.sub(r"\\\n\s*", " ", joined).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("fedlora ")]


COMMANDS = [(page.name, line) for page in PAGES for line in shown(page)]


@pytest.fixture(scope="module")
def command_line():
    add_all_verbs(app)
    return typer.main.get_command(app)


def test_there_are_commands_to_check():
    assert {page for page, _ in COMMANDS} >= {"README.md", "quickstart.md", "results.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_parses_and_names_what_there_is(command_line, page, line):
    _, verb, *arguments = shlex.split(line, comments=True)
    assert verb in command_line.commands, line
    context = command_line.commands[verb].make_context(verb, arguments)
    scenario = context.params.get("scenario", "")
    if scenario and scenario.islower() and not scenario.endswith(".toml"):
        assert scenario in scenario_names(), line
    keys = [key.name for key in scenario_keys()]
    for setting in context.params.get("set_") or []:
        name = setting.partition("=")[0]
        assert name in keys or ".options." in name, line


def test_every_verb_says_what_it_does_and_what_each_option_means(command_line):
    for verb, command in command_line.commands.items():
        assert command.help, verb
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, (verb, option.name)
