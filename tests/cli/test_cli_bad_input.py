"""A user's mistake is one sentence with the value and the mend, and status 2; nothing is left."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import patient

from fedlora import __version__
from fedlora.check import check_scenario
from fedlora.cli import main
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario

SETTINGS = {
    "train.rouns=3": "unknown scenario key train.rouns; did you mean rounds?",
    "train.rounds=three": "train.rounds is 'three'",
    "task.kind=nowhere:Task": "cannot import 'nowhere'",
    "task.kind=json:Nothing": "module 'json' has no 'Nothing'",
    "task.kind=json:JSONDecoder": "name a class that inherits from fedlora.tasks.base.Task",
    "task.kind=clasification": "did you mean classification?",
    "ranks.strategy=nowhere:Strategy": "cannot import 'nowhere'",
    "ranks.strategy=unifrom": "did you mean uniform?",
    "ranks.options.rank=3": "rank",
    "channel.model=nowhere:Channel": "cannot import 'nowhere'",
    "channel.schedule.scheduler=random_k": "is missing a required option 'clients'; known options",
    "channel.schedule.scheduler=everybody": "choose one of all, lyapunov, random_k, or give module",
    "link.gradient=int9": "did you mean int8? choose one of bf16, distinct, entropy, fp32, int8, "
    "rotated, tokens, or give module:Class",
    "link.gradient=json:JSONDecoder": "inherits from fedlora.link.codec.Codec",
    "robust.average=krum": "choose one of mean, median, norm_filter, trimmed_mean, or give module",
    "robust.average=json:JSONDecoder": "inherits from fedlora.robust.base.RobustAverage",
    "compute.device=cpuu": "blocks cannot be put in 'cpuu'",
    "compute.device_map=cpuu": "is 'cpuu'; it is a table, write {disk = \"16-23, 30\"}",
    'compute.device_map={cpuu = "0"}': "blocks cannot be put in 'cpuu'",
    'compute.device_map={cpu = "2-9"}': "puts block 4 in cpu, and the server holds blocks 0 to 3",
    'compute.max_memory={cpu = "lots"}': "is 'lots'; write a text such as 20GiB",
    "model.path=/nowhere/model": "model.path is '/nowhere/model', but there is no such model",
    "data.train=/nowhere/data.csv": "data.train is '/nowhere/data.csv', but there is no such",
    "model.client_front=4": "leave none of the model's 4 blocks to the server; lower them",
    "lora.targets=q_proj": "blocks; choose from c_attn, c_fc, c_proj or all-linear",
    'task.labels=["a", "c"]': "has the class 'b', which is not among the 2 task.labels",
    'task.labels=["a", "b", "a"]': "task.labels names 'a' more than once",
    "task.max_length=5000": "task.max_length 5000 exceeds the 64 positions of the model; lower it",
    "federation.clients=11": "80 records are too few for federation.clients 11",
    "data.label=intent": "data.label is 'intent', but record 1 of",
    "data.text=sentence": "data.text is 'sentence', but record 1 of",
    "partition.column=speaker": "partition.column is 'speaker'",
    "seed=-3": "seed is -3",
    "link.activation=fp16": "link.activation: no codecs plug-in is called 'fp16'; did you mean",
    "federation.min_clients=4": "federation.min_clients 4 exceeds federation.clients 3, so no",
    "federation.connect_timeout_s=-1": "federation.connect_timeout_s is -1.0; set 1 to 1e+07",
    "ranks.options.r=nan": "ranks.options.r: rank nan is not a whole number",
    "name=../x": "name is '../x'; write some letters without /",
    "data.train=hub:": "data.train is 'hub:'; name a dataset",
    "seed=99999999999999999999": "seed is 99999999999999999999; set 0 to",
    "python_path=nowhere": "but there is no such folder; name the one that holds",
    "channel.model=measured": "which is what devices measure; choose a simulated model",
    "ranks.options.r=1.5": "ranks.options.r: rank 1.5 is not a whole number",
    "ranks.options.r=-1": "rank -1",
    "robust.options.factor=3": "but robust.average is mean, which has none; leave them out",
    "link.host=http://127.0.0.1": "is 'http://127.0.0.1'; set a host name in ASCII or an address",
    "link.host=127.0.0.1:9000": "link.host is '127.0.0.1:9000'; set a host name in ASCII or an add",
    "link.host=two words": "link.host is 'two words'; set a host name",
    "link.host=256.0.0.1": "link.host is '256.0.0.1'; set a host name",
    "link.host=": "link.host is ''; set a host name",
    "link.host=no-such-host.invalid": "cannot listen on no-such-host.invalid:0; set link.port to",
    "observe.mlflow_uri=http://x": "observe.mlflow_uri is 'http://x', and observe.mlflow is false",
    "observe.wandb_mode=online": "so that it changes nothing; set observe.wandb, or leave observe",
    "observe.prometheus_host=::1": "set observe.prometheus_port, or leave observe.prometheus_host",
    "link.host=192.0.2.7": "cannot listen on 192.0.2.7:0; set link.port to a free port",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_wrong_setting_is_one_sentence(fedlora, scenario, tmp_path, setting):
    extra = ["--set", "partition.kind=column"] if "speaker" in setting else []
    out = tmp_path / "out"
    status, said = fedlora("run", scenario, "--out", out, "--set", setting, *extra)
    assert status == 2
    assert SETTINGS[setting] in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_plug_in_that_cannot_be_imported_names_the_line(fedlora, scenario, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "broken_plugin.py").write_text("import json\nclass Mine(Nothing): ...\n")
    plug_in = ["--set", f"python_path={tmp_path / 'far'}", "--set", "task.kind=broken_plugin:Mine"]
    status, said = fedlora("run", scenario, *plug_in)
    assert (status, said.count("\n")) == (2, 1)
    assert "broken_plugin.py (NameError: name 'Nothing' is not defined); mend it" in said
    assert "fails in line 2 of" in said


def damaged(tmp_path: Path, model: Path, change: str) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    match change:
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "family":
            (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "cut short":
            data = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
        case "no config":
            (folder / "config.json").unlink()
        case "config not JSON":
            (folder / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no tokenizer", "tokenizer"),
        ("family", "model_type 'mamba'"),
        ("no weights", "lacks model.safetensors"),
        ("cut short", "is cut short"),
        ("no config", "has no config.json; set model.path"),
        ("config not JSON", "is not valid JSON"),
    ],
)
def test_model_that_cannot_be_used_is_named(fedlora, scenario, model, tmp_path, change, message):
    folder = damaged(tmp_path, model, change)
    status, said = fedlora("run", scenario, "--set", f"model.path={folder}")
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert "damaged" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "holds no records"),
        ("header.csv", "text,label\n", "holds no records"),
        ("empty.jsonl", "", "holds no records"),
        ("ragged.csv", "text,label\nw1,a,b\n", "line 2 has 3 fields for 2 columns"),
        ("broken.jsonl", "{", "line 1 is not valid JSON"),
        ("deep.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
        ("some.xml", "<a/>", "whose kind '.xml' is not known"),
    ],
)
def test_data_that_cannot_be_used_are_named(fedlora, scenario, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    status, said = fedlora("run", scenario, "--set", f"data.train={path}")
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert name in said


def test_a_text_that_is_no_utf8_is_named(fedlora, finished, monkeypatch):
    status, said = fedlora("infer", finished, "w1", b"w\xff".decode(errors="surrogateescape"))
    assert (status, said.count("\n")) == (2, 1)
    assert r"text 2 has 'w\udcff', which is no UTF-8 text" in said
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1\nw2\n\xe9t\xe9\n")))
    status, said = fedlora("infer", finished)
    assert (status, said.count("\n")) == (2, 1)
    assert r"text 3 has '\udce9t\udce9'" in said


def test_a_trace_that_lacks_a_client_is_named_before_the_run(fedlora, scenario, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,client,snr_db\n0,0,10\n0,1,10\n")
    channel = ["--set", "channel.model=trace", "--set", f"channel.options.path={trace}"]
    status, said = fedlora("run", scenario, "--out", tmp_path / "out", *channel)
    assert (status, said.count("\n")) == (2, 1)
    assert "has no rows for client 2, only for 0, 1; add them" in said
    assert not (tmp_path / "out").exists()


def rows_with(path: Path, row: int, content: str, rows: int = 80) -> Path:
    """Write a csv file in which one row, counted from 1, is another than it should be."""
    lines = [f"w{number % 90 + 1} w5,{'ab'[number % 2]}" for number in range(rows)]
    lines[row - 1] = content
    path.write_text("\n".join(["text,label", *lines]))
    return path


@pytest.mark.parametrize("row", [1, 21, 78])
@pytest.mark.parametrize("which", ["train", "test"])
@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("w3,never", ['task.labels=["a", "b"]'], "the class 'never', which is not among the 2"),
        ("  ,a", [], "text '  ', which has no token"),
        ("w3 w4,a", ["task.kind=causal_lm", "data.prompt_separator=w5"], "has no 'w5'"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_by_its_row_in_the_file_before_anything_starts(
    fedlora, scenario, tmp_path, row, which, content, settings, message
):
    path = rows_with(tmp_path / "odd.csv", row, content)
    options = [word for s in (*settings, f"data.{which}={path}") for word in ("--set", s)]
    status, said = fedlora("run", scenario, "--out", tmp_path / "out", *options)
    assert (status, said.count("\n")) == (2, 1)
    assert f"record {row} of {path} has" in said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_class_that_only_the_test_file_has_is_refused(fedlora, scenario, data, tmp_path):
    path = rows_with(tmp_path / "odd.csv", 5, "w3,c", rows=6)
    status, said = fedlora("run", scenario, "--set", f"data.test={path}")
    assert status == 2
    assert f"record 5 of {path} has the class 'c'" in said
    assert f"not among the 2 classes of {data}; add it to task.labels" in said


def test_clients_with_too_few_rows_to_hold_one_out_are_refused(fedlora, scenario):
    few = ["--set", "partition.min_rows=1", "--set", "federation.clients=50"]
    status, said = fedlora("run", scenario, *few)
    assert status == 2
    assert "has 1 records, too few for data.holdout 0.1" in said


@pytest.mark.parametrize("release", ["full", "labels"])
def test_one_class_has_no_label_to_keep_private(fedlora, scenario, tmp_path, release):
    path = tmp_path / "one.csv"
    path.write_text("\n".join(["text,label", *(f"w{n % 90},a" for n in range(80))]))
    private = ["privacy.epsilon=8", f"privacy.release={release}", "evaluate.baseline=false"]
    options = [word for s in (f"data.train={path}", *private) for word in ("--set", s)]
    status, said = fedlora("run", scenario, "--out", tmp_path / "out", *options)
    assert (status, said.count("\n")) == (2, 1)
    assert "the data has 1 class" in said
    assert not (tmp_path / "out").exists()


def test_encoder_cannot_be_a_language_model(checkpoints, model, tmp_path, data):
    folder = tmp_path / "bert"
    shutil.copytree(checkpoints["bert"], folder)
    shutil.copy(model / "tokenizer.json", folder)
    text = f'[model]\npath = "{folder}"\n[task]\nkind = "causal_lm"\n[data]\ntrain = "{data}"\n'
    with pytest.raises(FedloraError, match="cannot be trained as a language model"):
        check_scenario(find_scenario(text))


def test_sound_scenario_passes_the_check(scenario):
    check_scenario(find_scenario(str(scenario)))


def test_folder_with_other_files_is_not_taken(fedlora, scenario, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    status, said = fedlora("run", scenario, "--out", tmp_path)
    assert status == 2
    assert "is not empty and holds no earlier run; choose another folder" in said
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_unknown_verb_names_the_nearest_once(fedlora):
    status, said = fedlora("exprot", "run")
    assert status == 2
    assert said.count("Did you mean 'export'?") == said.count("mean") == 1


def test_unknown_scenario_names_the_nearest(fedlora):
    status, said = fedlora("run", "quikstart")
    assert status == 2
    assert "no scenario is called 'quikstart'; did you mean quickstart?" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "--out", "x"],
            "nowhere/adapter holds no adapter that can be read (there is ",
        ),
        (["nowhere"], "--out"),
        (["nowhere", "--out", "x", "--format", "onnx"], "onnx"),
        (["nowhere", "--out", "x", "--rank", "0"], "--rank"),
    ],
)
def test_export_that_cannot_be_is_refused(fedlora, arguments, message):
    status, said = fedlora("export", *arguments)
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_unknown_keys_name_the_nearest(fedlora):
    status, said = fedlora("keys", "rouns")
    assert status == 2
    assert "no scenario key contains 'rouns'; did you mean train.rounds?" in said


def test_a_file_in_place_of_a_folder_is_named(fedlora, scenario, tmp_path):
    (tmp_path / "taken").write_text("mine")
    deliver = "channel.deliver_every=1"
    status, said = fedlora(
        *("compare", scenario, "--strategies", "greedy", "--out", tmp_path / "taken"),
        *("--set", deliver),
    )
    assert (status, said.count("\n")) == (2, 1)
    assert f"--out {tmp_path / 'taken'} is a file; name a folder" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--price", "nan"], "--price is nan; set a finite number"),
        (["--snr", "5;10"], "--snr is '5;10'; list different numbers of dB from -200 to 200"),
        (["--set", "channel.model=log_distance"], "has SNRs of its own, so that --snr changes"),
        (["--strategies", "uniform(r=9)"], "rank 9"),
        (["--strategies", "uniform(r=1..100000)"], "names 100000 ranks; name at most 1000"),
        (["--set", "robust.average=krum"], "no averages plug-in is called 'krum'"),
        (["--set", "channel.deliver_every=0"], "channel.deliver_every is 0"),
    ],
)
def test_comparison_that_says_nothing_is_refused(fedlora, scenario, tmp_path, arguments, message):
    own = [] if "deliver" in arguments[-1] else ["--set", "channel.deliver_every=1"]
    command = ["compare", scenario, "--strategies", "greedy", "--out", tmp_path / "out"]
    status, said = fedlora(*command, *own, *arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said
    assert not (tmp_path / "out").exists()


def test_unknown_verb_and_option_are_refused(fedlora):
    assert fedlora("rnu")[0] == 2
    assert fedlora("run", "--sett", "a=b")[0] == 2


def test_process_exits_without_a_traceback(scenario, tmp_path):
    """The same in a process of its own, as a user calls it."""
    command = [sys.executable, "-c", "from fedlora.cli import main; main()"]
    ended = subprocess.run(
        [*command, "run", str(scenario), "--set", "lora.targets=q_proj"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("fedlora: lora.targets names 'q_proj'")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_the_version_is_printed_as_other_programs_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedlora", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")
