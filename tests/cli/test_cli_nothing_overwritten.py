"""What an earlier call has written stays, unless the user says --overwrite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer

from fedlora.cli import app
from fedlora.commands.run import run_simulation
from fedlora.errors import FedloraError
from fedlora.report import RUN, RunFolder
from fedlora.storage import dated_folder
from fedlora.verbs import add_all_verbs

PRIVATE = [
    *("--set", "privacy.epsilon=8", "--set", "privacy.clip=1", "--set", "privacy.delta=1e-5"),
    *("--set", "channel.deliver_every=1", "--set", "channel.model=rayleigh"),
]
AIR = ["--set", "channel.deliver_every=1", "--set", "channel.model=rayleigh"]
UNDIVIDED = [
    *("quickstart", "--set", "privacy.epsilon=none", "--set", "ranks.strategy=uniform"),
    *("--set", "channel.deliver_every=0"),
]
FOLDERS = {
    "run": (["SCENARIO"], "events.jsonl"),
    "rehearse": (["SCENARIO"], "events.jsonl"),
    "export": (["RUN"], "adapter_config.json"),
    "slice": (["MODEL"], "edge.json"),
    "cascade": (["quickstart-private"], "cascade.json"),
    "parity": (UNDIVIDED, "trials.jsonl"),
    "participation": (["quickstart", "--participants", "2"], "participation.csv"),
    "compare": (["SCENARIO", "--strategies", "greedy", *AIR], "trials.jsonl"),
    "train-policy": (["quickstart"], "settings.toml"),
    "utility": (["quickstart-private"], "utility.csv"),
}
"""The commands that write a folder: what they need, and what marks a folder of theirs."""

FILES = {
    **{"audit": ["RUN"], "bench": ["--quick"], "parity": UNDIVIDED, "site": ["RUN"]},
    **{"fuzz": ["--trials", "1"], "check": ["quickstart"], "plan": ["quickstart"]},
}
"""The commands that write a file, with --json."""

ADDS = {"poison", "certs", "fuzz"}
"""Those that add to what is there, and change none of it."""

ONE_FILE = {"csi": (["make"], "channels.safetensors")}
"""Those that write one file, with --out."""

ELSEWHERE = {"kit", "data", "serve", "channel"}
"""Those that are tried elsewhere: test_deploy_kit.py, test_cli_data.py, test_cli_generate.py,
test_cli_channel.py."""


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")
    }


def _needs_its_libraries(verb: str) -> None:
    if verb == "train-policy":
        pytest.importorskip("stable_baselines3", reason="needs fedlora[policy]")


@pytest.fixture
def filled(finished, model, scenario):
    """Put paths in place of words."""
    places = {"RUN": str(finished), "MODEL": str(model), "SCENARIO": str(scenario)}
    return lambda words: [places.get(word, word) for word in words]


def test_every_command_that_writes_is_tried_here():
    add_all_verbs(app)
    commands = typer.main.get_command(app).commands
    options = {verb: {o for p in own.params for o in p.opts} for verb, own in commands.items()}
    outs = {v for v, found in options.items() if "--out" in found} - ADDS - ELSEWHERE
    assert outs == set(FOLDERS) | set(ONE_FILE)
    assert {v for v, found in options.items() if "--json" in found} == set(FILES)
    overwrites = {verb for verb, found in options.items() if "--overwrite" in found}
    assert overwrites == FOLDERS.keys() | FILES.keys() | ONE_FILE.keys() | ELSEWHERE


@pytest.mark.parametrize("verb", ONE_FILE)
def test_the_one_file_that_a_verb_writes_is_kept_too(fedlora, tmp_path, verb):
    words, name = ONE_FILE[verb]
    (tmp_path / name).write_text("precious")
    status, said = fedlora(verb, *words, "--out", tmp_path / name)
    assert (status, said.count("\n")) == (2, 1)
    assert name in said and "--overwrite" in said
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_of_an_earlier_call_is_kept_and_the_mend_named(fedlora, tmp_path, filled, verb):
    _needs_its_libraries(verb)
    words, mark = FOLDERS[verb]
    out = tmp_path / "earlier"
    (out / "adapter").mkdir(parents=True)
    for name in ("adapter/weights", "scenario.toml", mark):
        (out / name).write_text('name = "precious"\n')
    before = contents(out)
    status, said = fedlora(verb, *filled(words), "--out", out)
    assert (status, said.count("\n")) == (2, 1)
    assert str(out) in said
    assert "--overwrite" in said
    assert ("fedlora resume" in said) == (verb in ("run", "rehearse"))
    assert contents(out) == before


@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_of_something_else_is_refused_always(fedlora, tmp_path, filled, verb, extra):
    _needs_its_libraries(verb)
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("precious")
    status, said = fedlora(verb, *filled(FOLDERS[verb][0]), "--out", out, *extra)
    assert (status, said.count("\n")) == (2, 1)
    assert "is not empty and holds no earlier" in said
    assert contents(out) == {out / "chapter.txt": b"precious"}


@pytest.mark.parametrize("verb", FILES)
def test_a_file_that_is_there_is_kept_and_the_mend_named(fedlora, tmp_path, filled, verb):
    file = tmp_path / "figures.json"
    file.write_text("precious")
    status, said = fedlora(verb, *filled(FILES[verb]), "--json", file)
    assert (status, said.count("\n")) == (2, 1)
    assert f"--json {file} exists; replace it with --overwrite" in said
    assert file.read_text() == "precious"


def test_a_plot_beside_the_figures_of_an_audit_is_kept(fedlora, tmp_path, finished):
    (tmp_path / "figures-labels.png").write_text("precious")
    status, said = fedlora("audit", finished, "--json", tmp_path / "figures.json")
    assert status == 2
    assert f"{tmp_path / 'figures-labels.png'} exists" in said


def test_the_figures_that_a_run_keeps_of_an_audit_are_kept(fedlora, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "audit.json").write_text("{}")
    status, said = fedlora("audit", tmp_path / "run")
    assert (status, said.count("\n")) == (2, 1)
    assert "figures of an earlier audit, audit.json; replace them with --overwrite" in said


@pytest.mark.parametrize("content", ["precious\n", '{"a": 1}\n', "precious", '{"trial": {}}\n'])
def test_results_are_not_added_to_a_file_of_something_else(fedlora, tmp_path, content):
    file = tmp_path / "file"
    file.write_text(content)
    status, said = fedlora("poison", "quickstart", "--out", file)
    assert (status, said.count("\n")) == (2, 1)
    assert "holds something else than results of fedlora poison" in said
    assert file.read_text() == content


def test_keys_that_are_there_stay_as_they_are(fedlora, tmp_path):
    keys = ["certs", "--out", tmp_path / "keys", "--host", "fed.example.org", "--nodes"]
    assert fedlora(*keys, 1)[0] == 0
    before = contents(tmp_path / "keys")
    assert fedlora(*keys, 2, "--days", 7)[0] == 0
    after = contents(tmp_path / "keys")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_an_export_replaces_one_of_another_form_whole_and_nothing_else(fedlora, tmp_path, finished):
    out = tmp_path / "export"
    assert fedlora("export", finished, "--out", out)[0] == 0
    (out / "notes.txt").write_text("precious")
    assert fedlora("export", finished, "--out", out, "--format", "padded")[0] == 2
    assert (out / "fedlora.json").is_file()
    assert fedlora("export", finished, "--out", out, "--format", "padded", "--overwrite")[0] == 0
    assert {p.name for p in out.iterdir()} == {
        "notes.txt",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "README.md",
    }


@pytest.mark.parametrize("target", ["RUN/adapter", "MODEL"])
def test_an_export_never_replaces_what_is_exported(fedlora, finished, filled, model, target):
    before = contents(finished) | contents(model)
    place = target.replace("RUN", str(finished)).replace("MODEL", str(model))
    status, said = fedlora("export", finished, "--out", place, "--overwrite")
    assert (status, said.count("\n")) == (2, 1)
    assert "which is exported; name another" in said
    assert contents(finished) | contents(model) == before


def test_a_run_that_is_replaced_leaves_nothing_of_itself_and_all_else(finished, tmp_path):
    shutil.copytree(finished, out := tmp_path / "run")
    (out / "notes.txt").write_text("precious")
    with pytest.raises(FedloraError, match=f"fedlora resume {out} if it has not ended"):
        RunFolder.create(out)
    assert (out / "adapter" / "adapter_config.json").is_file()
    RunFolder.create(out, overwrite=True)
    assert {p.name for p in out.iterdir()} == {"notes.txt", "events.jsonl"}
    assert {p.name for p in finished.iterdir()} <= {"events.jsonl", *RUN.own}


def test_a_refused_folder_is_refused_before_flower_starts(scenario, finished, monkeypatch):
    monkeypatch.setattr("fedlora.commands.run.follow_simulation", lambda *_: pytest.fail("started"))
    with pytest.raises(FedloraError, match="--overwrite"):
        run_simulation(str(scenario), finished, [])


def test_a_dated_folder_is_free_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")
    first = dated_folder(tmp_path / "mine")
    first.mkdir()
    second = dated_folder(tmp_path / "mine")
    assert (first.name, second.name) == ("mine-20260102-030405", "mine-20260102-030405-2")


def test_a_report_is_written_again_in_the_forms_that_papers_want(fedlora, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {p: p.read_bytes() for p in run.glob("*.json*")}
    assert fedlora("report", run, "--figures", "svg")[0] == 0
    assert {p.suffix for p in (run / "plots").glob("learning.*")} == {".png", ".svg"}
    assert r"\toprule" in (run / "result.tex").read_text()
    assert "accuracy" in (run / "result.md").read_text()
    assert (run / "report.html").is_file()
    assert before == {p: p.read_bytes() for p in before}
    status, said = fedlora("report", tmp_path)
    assert status == 2
    assert "holds no finished round of a run; name a run folder" in said
