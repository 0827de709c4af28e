"""Help of the verbs of other packages is theirs, and is shown without importing them."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from importlib.metadata import EntryPoint

import typer

from fedlora import verbs
from fedlora.verbs import add_all_verbs, add_plugin_verbs


def help_of(app: typer.Typer) -> dict[str, str]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: command.get_short_help_str(limit=1000) for name, command in commands.items()}


def test_help_is_the_verbs_own():
    shown, real = typer.Typer(), typer.Typer()
    add_plugin_verbs(shown)
    add_all_verbs(real)
    assert help_of(shown) == help_of(real)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fedlora', '--help']\n"
        "from fedlora.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'flwr', 'ray'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == "[]"
    assert "train-policy" in ended.stdout


def test_a_verb_whose_text_cannot_be_found_is_imported_for_its_help(monkeypatch):
    entry = EntryPoint("say", "json:dumps", "fedlora.commands")
    monkeypatch.setattr(verbs, "_docstring", lambda entry: "")
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda: None)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    app = typer.Typer()
    app.command("own")(lambda: None)
    add_plugin_verbs(app)
    assert set(help_of(app)) == {"own", "say"}
