"""A file or folder that cannot be used is one sentence and status 2, whichever verb meets it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from fedlora.cli import main

EXPORT, INFER = ["export", "RUN", "--out", "OUT"], ["infer", "RUN", "w1"]
CLIENT = [*EXPORT, "--client", "0"]
ADAPTER, HEAD = "adapter/adapter_model.safetensors", "head.safetensors"


def arguments_of(template: list[str], run: Path, tmp_path: Path) -> list[str]:
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    return [
        places.get(first, first) + slash + rest
        for first, slash, rest in (word.partition("/") for word in template)
    ]


@pytest.mark.parametrize(
    ("name", "content", "template", "message"),
    [
        ("adapter/adapter_config.json", "{", EXPORT, "no adapter that can be read"),
        ("adapter/adapter_config.json", "[]", INFER, "no adapter that can be read"),
        (ADAPTER, "short", EXPORT, "no adapter that can be read"),
        (ADAPTER, "short", ["audit", "RUN"], "no adapter that can be read"),
        (HEAD, "junk" * 9, INFER, "head.safetensors holds no head that can be read"),
        ("scenario.toml", "= 3", INFER, "is not valid TOML"),
        ("scenario.toml", "= 3", ["audit", "RUN"], "is not valid TOML"),
        ("metrics.jsonl", '{"round": 1, "clients": [1]}\n', CLIENT, "no client '0' with ranks"),
        (
            "metrics.jsonl",
            '{"round": 1, "clients": {"0": 1}}\n',
            CLIENT,
            "no client '0' with ranks",
        ),
        (
            "metrics.jsonl",
            '{"round": 1, "clients": {"0": {"ranks": ["a"]}}}\n',
            CLIENT,
            "has ['a'] as ranks of client 0; it is damaged, so give --rank",
        ),
    ],
)
def test_a_damaged_run_folder_is_one_sentence(
    fedlora, finished, tmp_path, name, content, template, message
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).write_text(content)
    status, said = fedlora(*arguments_of(template, run, tmp_path))
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fedlora.json", "{", "is no export that can be read"),
        ("fedlora.json", "[]", "is no export that can be read"),
        ("fedlora.json", '{"model": 3}', "(model is 3; write a text in quotes)"),
        ("fedlora.json", '{"task": {"pool": "lst"}}', "task.pool is 'lst'; choose one of last"),
        ("fedlora.json", '{"model": "x"}', "missing 2 required positional arguments"),
        ("adapter_model.safetensors", "junk" * 9, "cannot be put on the model in"),
        ("adapter_config.json", "{", "cannot be put on the model in"),
        ("head.safetensors", "junk" * 9, "holds no head that can be read"),
    ],
)
def test_a_damaged_export_is_one_sentence(fedlora, finished, tmp_path, name, content, message):
    out = tmp_path / "out"
    assert fedlora("export", finished, "--out", out)[0] == 0
    (out / name).write_text(content)
    status, said = fedlora("infer", out, "w1")
    assert (status, said.count("\n")) == (2, 1)
    assert message in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", "junk" * 9, "is damaged"),
        ("config.json", "[]", "holds no table; copy it anew"),
        ("config.json", '{"model_type": "gpt2"}', "has None as its num_hidden_layers"),
        ("config.json", '{"model_type": "gpt2", "n_layer": "4"}', "has '4' as its n_layer"),
        ("tokenizer.json", "{}", "the tokenizer in"),
    ],
)
@pytest.mark.parametrize("verb", ["infer", "slice"])
def test_a_damaged_model_is_one_sentence(
    fedlora, finished, model, tmp_path, verb, name, content, message
):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, folder)
    (folder / name).write_text(content)
    arguments = ["infer", finished, "w1", "--model", folder]
    if verb == "slice":
        arguments = ["slice", folder, "--out", out]
    status, said = fedlora(*arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert not out.exists()


def test_a_backbone_that_the_adapter_does_not_fit_is_named(fedlora, finished, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    shutil.copytree(Path("simulations/quickstart/decoder").absolute(), other, dirs_exist_ok=True)
    status, said = fedlora("infer", finished, "w1", "--model", other)
    assert (status, said.count("\n")) == (2, 1)
    assert "cannot be put on the model in" in said
    assert "give the backbone of the run" in said


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (["export", "RUN", "--out", "RUN"], "is not empty and holds no earlier export"),
        (["export", "RUN", "--out", "FILE"], "is a file; name a folder"),
        (["export", "RUN", "--out", ""], "an argument of fedlora export is empty"),
        (["export", "FILE", "--out", "OUT"], "no adapter that can be read"),
        (["infer", "FILE", "w1"], "cannot read scenario"),
        (["audit", "FILE"], "is not valid TOML"),
        (["audit", "RUN", "--json", "FILE/x.json"], "File exists; name another"),
        (["resume", "FILE"], "holds no run"),
        (["resume", "RUN"], "is finished; start another"),
        (["top", "FILE"], "holds no run"),
        (["top", "RUN", "--interval", "nan"], "--interval is nan; set a finite number"),
        (["certs", "--out", "FILE", "--host", "a", "--nodes", "1"], "File exists"),
        (["slice", "FILE", "--out", "OUT"], "which is a file; name its folder"),
        (["compare", "FILE", "--strategies", "greedy", "--out", "OUT"], "is not valid TOML"),
        (["train-policy", "FILE", "--out", "OUT"], "is not valid TOML"),
    ],
)
def test_a_wrong_place_is_one_sentence(fedlora, finished, tmp_path, template, message):
    (tmp_path / "file").write_text("mine")
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    status, said = fedlora(*arguments_of(template, finished, tmp_path))
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert not (tmp_path / "out").exists()
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", '{"clients": {"0": 3}}'),
        ("metrics.jsonl", '{"round": 1, "clients": {"0": 3}}\n'),
        ("metrics.jsonl", '{"round": 1, "clients": [1]}\n'),
        ("events.jsonl", '\ufffe\n{"event": 3}\n{"event": "step", "step": "x"}\n'),
    ],
)
def test_top_leaves_out_what_it_cannot_read(fedlora, finished, tmp_path, name, content):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    assert fedlora("top", tmp_path / "run", "--once") == (0, "")


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "server.pem"])
def test_a_damaged_key_is_named(fedlora, tmp_path, name):
    keys = ["certs", "--out", tmp_path, "--host", "fed.example.org", "--nodes", "1"]
    assert fedlora(*keys)[0] == 0
    (tmp_path / name).write_text("junk")
    status, said = fedlora(*keys)
    assert (status, said.count("\n")) == (2, 1)
    assert f"{tmp_path / name} cannot be read" in said
    assert "choose another --out for new keys" in said


@pytest.mark.parametrize(
    "host", ["a b", "https://fed.example.org", "fed.example.org:8000", "fä.example.org", "a" * 70]
)
def test_a_host_that_no_client_can_dial_is_refused(fedlora, tmp_path, host):
    status, said = fedlora("certs", "--out", tmp_path / "keys", "--host", host, "--nodes", "1")
    assert (status, said.count("\n")) == (2, 1)
    assert "which is no name or address" in said
    assert not (tmp_path / "keys").exists()


def test_a_run_that_has_not_ended_is_gone_on_with_before_its_head_is_asked_for(
    fedlora, finished, tmp_path
):
    shutil.copytree(finished, run := tmp_path / "run")
    (run / "head.safetensors").unlink()
    summary = json.loads((run / "summary.json").read_text())
    for text in (None, json.dumps(summary | {"unfinished": True})):
        (run / "summary.json").unlink(missing_ok=True)
        if text is not None:
            (run / "summary.json").write_text(text)
        status, said = fedlora("infer", run, "w1")
        assert (status, said.count("\n")) == (2, 1)
        assert "has not ended, and its head is written at the end; go on with it by" in said
        assert f"fedlora resume {run}" in said


def test_keys_that_share_a_meaning_tell_it_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedlora", "keys", "channel.report"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert said.count("How old the reported channel is") == 1
    assert "channel.report.delay_rounds" in said and "channel.report.delay_s" in said
