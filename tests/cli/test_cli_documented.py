"""Every command that README and docs show is one that the command line takes."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer
from support.house import ROOT
from support.pages import PAGES, shown, words_of

from fedlora.cli import app
from fedlora.commands.keys import scenario_keys
from fedlora.scenarios import scenario_names
from fedlora.verbs import add_all_verbs
from simulations.bench.context import Settings
from simulations.bench.experiments import experiments as all_experiments

KEYS = {key.name for key in scenario_keys()}


def named(page: Path) -> list[list[str]]:
    """Return fedlora's commands in the running text, word by word."""
    text = page.read_text(encoding="utf-8").replace("\n", " ")
    return [shlex.split(found) for found in re.findall(r"`(fedlora [^`]+)`", text)]


COMMANDS = [
    (page.name, line)
    for page in PAGES
    for line in shown(page.read_text(encoding="utf-8"))
    if line.startswith("fedlora ")
]


@pytest.fixture(scope="module")
def command_line():
    add_all_verbs(app)
    return typer.main.get_command(app)


def test_there_are_commands_to_check():
    assert {page for page, _ in COMMANDS} >= {"README.md", "quickstart.md", "results.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_parses_and_names_what_there_is(command_line, page, line):
    _, verb, *arguments = words_of(line)
    assert verb in command_line.commands, line
    context = command_line.commands[verb].make_context(verb, arguments)
    scenario = context.params.get("scenario", "")
    if scenario and scenario.islower() and not scenario.endswith(".toml"):
        assert scenario in scenario_names(), line
    for setting in context.params.get("set_") or []:
        name = setting.partition("=")[0]
        assert name in KEYS or ".options." in name, line


def test_the_site_has_every_page_once():
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(name for name in there if not name.startswith("images/"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_documented_extras_and_modules_are_ones_that_there_are(page):
    text = page.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"(?:fedlora|\.)\[(\w+)\]['\"]", text)) <= set(extras)
    for module in re.findall(r"python -m (simulations[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def scenario_tables(text: str) -> list[dict]:
    """Return the TOML blocks that are parts of a scenario."""
    blocks = re.findall(
        r"^```toml\n(.*?)^```|((?:^ {4,}[^\n]*\n)+)", text, re.MULTILINE | re.DOTALL
    )
    sections = {name.partition(".")[0] for name in KEYS}
    found = []
    for fenced, indented in blocks:
        block = fenced or textwrap.dedent(indented)
        first = re.search(r"^\[(\w+)", block, re.MULTILINE)
        if first and first[1] in sections:
            found.append(tomllib.loads(block))
    return found


def names(table: dict, before: str = "") -> list[str]:
    """Return the keys of nested tables, as --set names them; options are the plug-in's."""
    found = []
    for key, value in table.items():
        name = f"{before}{key}"
        inside = isinstance(value, dict) and name not in KEYS and not name.endswith(".options")
        found += names(value, f"{name}.") if inside else [name]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_scenarios_have_only_keys_that_there_are(page):
    tables = scenario_tables(page.read_text(encoding="utf-8"))
    assert tables or page.name not in ("scenarios.md", "deploy.md", "tasks.md")
    for table in tables:
        shown = {name for name in names(table) if not name.endswith(".options")}
        assert shown <= KEYS, shown - KEYS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_in_the_text_names_what_there_is(command_line, page):
    experiments = [experiment.name for experiment in all_experiments(Settings())]
    for words in named(page):
        if (
            words[1][0].isalpha() and words[1].islower() and words[1] != "client"
        ):  # `fedlora client K` is a node's name
            assert words[1] in command_line.commands, words
        if "--only" in words and words[1] == "bench":
            chosen = words[words.index("--only") + 1]
            assert any(name.startswith(chosen) for name in experiments), words


def test_every_verb_says_what_it_does_and_what_each_option_means(command_line):
    for verb, command in command_line.commands.items():
        assert command.help, verb
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, (verb, option.name)
