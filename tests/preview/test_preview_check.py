"""``fedlora check`` tells all faults at once, and figures that hold when the run is made."""

from __future__ import annotations

import json
import logging
import shlex
import tomllib

import numpy as np
import pytest
from support.chat_folders import SMOLLM2, write_chat_model
from support.federation import Federation, copy_model, scenario
from transformers import AutoTokenizer
from typer.testing import CliRunner

from fedlora import cli
from fedlora.check import check_run
from fedlora.commands.check import figures
from fedlora.config import scenario_to_toml
from fedlora.link.messages import GRADIENT, STEP
from fedlora.preview import Load, find_faults, predict_sizes, read_all, view_rows
from fedlora.scenarios import find_scenario
from fedlora.split import Checkpoint


@pytest.fixture(scope="module")
def tiny(checkpoints, tmp_path_factory):
    return copy_model(checkpoints["llama"], tmp_path_factory.mktemp("tiny") / "llama", "llama")


def records(path, texts, label="A"):
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t in texts))
    return path


def run(*arguments):
    done = CliRunner().invoke(cli.app, ["check", *map(str, arguments)])
    return done.exit_code, done.output


def test_every_fault_is_told_at_once_and_nothing_is_started(tmp_path, tiny):
    rows = [{"text": "w4", "label": "A"}, {"text": "w5 w6", "label": "B"}] * 8
    rows[3] |= {"text": "w4 w200"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bad.toml").write_text(
        f'name = "bad"\n[train]\nlr = -1.0\nstepps = 3\n[model]\npath = "{tiny}"\n'
        f'[link]\nactivation = "fp8"\n[ranks]\nstrategy = "unifrom"\n'
        f'[task]\nmax_length = 4096\n[lora]\ntargets = ["nope"]\n'
        f'[data]\ntrain = "{path}"\nlabel = "lable"\n'
    )
    file = tmp_path / "found.json"
    status, told = run(
        tmp_path / "bad.toml", "--set", "train.rounds=0", "--set", "seed=x", "--json", file
    )
    assert status == 2
    words = [
        "train.lr is -1.0",
        "unknown scenario key train.stepps; did you mean steps?",
        "train.rounds is 0",
        "seed is 'x'",
        "'fp8'",
        "'unifrom'",
        "task.max_length 4096 exceeds the 64 positions",
        "lora.targets names 'nope'",
        "data.label is 'lable'",
    ]
    faults = json.loads(file.read_text())["faults"]
    for word in words:
        assert sum(word in fault for fault in faults) == 1, (word, faults)
        assert word in told
    assert "nothing was started" in told


def test_what_is_wrong_because_a_key_was_left_out_is_not_told():
    """In the scenario the codec of these bits is fp32, which has bits of its own."""
    keys = ["link.end_weight=rotated", "link.end_weight_bits=4", "train.lr=-1.0"]
    scenario, (first, second) = read_all("quickstart", keys)
    assert first == "train.lr is -1.0; set 1e-30 to 100"
    assert second.startswith("link.end_weight is rotated, and under privacy")
    assert scenario.link.end_weight == "fp32"


def test_classes_of_records_that_cannot_be_read_are_not_asked_of_others():
    status, told = run("quickstart", "--set", "data.train=nowhere.csv")
    assert status == 2
    assert "nowhere.csv" in told
    assert told.rstrip().endswith("quickstart has 1 fault; nothing was started")


def test_the_command_that_is_named_at_the_end_runs_what_was_looked_at(tmp_path, tiny):
    path = records(tmp_path / "rows.jsonl", ["w4 w5"] * 30)
    (tmp_path / "s.toml").write_text(scenario_to_toml(scenario(tiny, path, "task.kind=causal_lm")))
    _, told = run(tmp_path / "s.toml", "--set", "train.lr=2e-3", "--set", "name=two words")
    command = shlex.split(told.rpartition("can be run: ")[2])
    settings = ["--set", "train.lr=2e-3", "--set", "name=two words"]
    assert command == ["fedlora", "run", str(tmp_path / "s.toml"), *settings]


def test_check_and_plan_say_alike_what_the_server_keeps(tmp_path, tiny):
    path = records(tmp_path / "rows.jsonl", ["w4 w5", "w6 w7 w8"] * 20)
    config = scenario(tiny, path, "task.kind=causal_lm", "data.holdout=0.5", "train.rounds=20")
    (tmp_path / "s.toml").write_text(scenario_to_toml(config))
    sizes = figures(config)[1]
    file = tmp_path / "plan.json"
    planned = CliRunner().invoke(cli.app, ["plan", str(tmp_path / "s.toml"), "--json", str(file)])
    assert planned.exit_code == 0
    kept = json.loads(file.read_text())["kept_bytes"]
    assert sizes.server_kept == pytest.approx(kept, rel=0.02)  # and a bit of a token's target


def test_each_record_that_cannot_be_used_is_told_of(tmp_path):
    model = write_chat_model(tmp_path / "chat", SMOLLM2)
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [good] * 20
    rows[2], rows[11] = good[:1], [good[0], {"role": "assistant", "content": " "}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = scenario(model, path, "task.kind=causal_lm", "data.messages=messages")
    told = "\n".join(find_faults(config))
    assert "record 3 of " in told and "no assistant's turn" in told
    assert "record 12 of " in told and "an empty turn, message 2" in told
    path.write_text("".join(json.dumps({"messages": good[:1]}) + "\n" for _ in range(14)))
    *first, last = [fault for fault in find_faults(config) if str(path) in fault]
    assert len(first) == 10 and first[-1].startswith("record 10 of ")
    assert last.startswith(f"4 records of {path}, from record 11 on, were not looked at")


def test_what_check_accepts_a_run_accepts_and_the_numbers_of_its_rows_agree(tmp_path, tiny, caplog):
    lengths = [3, 5, 8, 13, 40, 7, 7, 30] * 5
    texts = [" ".join(["w4"] * length) for length in lengths]
    path = records(tmp_path / "rows.jsonl", texts)
    config = scenario(tiny, path, "task.kind=causal_lm", "task.max_length=20", "data.holdout=0.2")
    (tmp_path / "s.toml").write_text(scenario_to_toml(config))
    file = tmp_path / "found.json"
    status, told = run(tmp_path / "s.toml", "--json", file)
    assert status == 0
    found = json.loads(file.read_text())
    clients = found["clients"]
    assert sum(c["train"] + c["held_out"] for c in clients) == len(lengths)
    federation = Federation(config)
    assert [len(c.train) for c in federation.clients] == [c["train"] for c in clients]
    oracle = AutoTokenizer.from_pretrained(tiny)
    tokens = [len(oracle(text).input_ids) + 1 for text in texts]  # and the end token
    assert found["tokens"]["quartiles"] == list(np.quantile(tokens, [0.25, 0.5, 0.75]))
    assert found["tokens"]["longest"] == max(tokens)
    cut = sum(length > 20 for length in tokens)
    assert found["records"][str(path)] == {"records": 40, "cut": cut, "left_out": 0}
    said = f"{path}: {cut} of 40 records are cut to task.max_length 20 tokens, the longest has 42"
    assert told.count(said) == 1 and not caplog.records
    with caplog.at_level(logging.WARNING, "fedlora.check_data"):
        check_run(config)
    assert any(record.getMessage().startswith(said) for record in caplog.records)
    assert "row 1: <s>[w4|w4|w4|</s>]" in told


def test_names_of_classes_send_no_control_codes_to_a_terminal(tmp_path, tiny):
    rows = [{"text": "w4", "label": label} for label in ("\x1b[31mred", "a" * 300, "b") * 8]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "s.toml").write_text(scenario_to_toml(scenario(tiny, path)))
    status, told = run(tmp_path / "s.toml")
    assert status == 0
    assert "row 1 (?[31mred)" in told and f"row 2 ({'a' * 80})" in told
    assert "\x1b" not in told and "a" * 81 not in told


@pytest.mark.parametrize(
    "options",
    [
        ["link.activation=int8", "link.gradient=bf16"],
        ["head.share=step", "link.representation=bf16"],
        ["task.kind=causal_lm", "train.embedding=true", "link.targets_only=false"],
        ["task.kind=causal_lm", "data.prompt_separator=w5"],
    ],
)
def test_the_bytes_of_a_step_are_those_that_a_client_sends_and_gets(tmp_path, tiny, options):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "w4 w5 w6 w7,A\nw8 w5 w10 w11,B\n" * 20)
    config = scenario(tiny, path, *options)
    seen = {STEP: 0, GRADIENT: 0, "embedding": 0, "activation": 0}

    def counting(client):
        def handle(frame):
            reply = client.handle(frame)
            for part in (frame, reply):
                if part.kind in seen:
                    size = sum(t.numel() * t.element_size() for t in part.tensors.values())
                    seen[part.kind] = max(seen[part.kind], size)
            return reply

        return handle

    Federation(config, wrap=counting).run()
    checkpoint = Checkpoint(tiny)
    rows = view_rows(config, checkpoint)
    assert rows is not None
    sizes = predict_sizes(config, checkpoint, rows.load(16), len(rows.labels))
    apart = config.train.embedding  # the next activation then follows in a message of its own
    assert sizes.up == seen[GRADIENT] + (seen["activation"] if apart else 0)
    assert sizes.down == seen[STEP] + seen["embedding"]


def test_frozen_weights_and_adapters_are_counted_by_their_shapes(tmp_path, tiny):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "w4 w5,A\nw8 w9,B\n" * 20)
    config = scenario(tiny, path)
    sizes = predict_sizes(config, Checkpoint(tiny), Load(3.0, 0.0, 0, 0), 2)
    server = Federation(config).server
    factors = sum(p.numel() for p in server.engine.adapter().values())
    assert sizes.server_adapters == 16 * factors
    frozen = sum(p.numel() for p in server.engine.blocks.model.parameters() if not p.requires_grad)
    assert sizes.server_weights == pytest.approx(4 * frozen, rel=0.02)  # the final norm


def deployed(folder, model, *lines):
    path = folder / "wards.toml"
    path.write_text(
        f'name = "wards"\n[model]\npath = "{model}"\n[task]\nlabels = ["no", "yes"]\n'
        "max_length = 16\n"
        '[link]\nhost = "0.0.0.0"\nport = 0\npublic_host = "fed.example.org"\n' + "\n".join(lines)
    )
    return path


@pytest.mark.parametrize("lines", [(), ('[channel]\nmodel = "measured"',)])
def test_of_a_deployment_whose_devices_bring_data_no_other_data_is_looked_at(tmp_path, tiny, lines):
    path, file = deployed(tmp_path, tiny, *lines), tmp_path / "found.json"
    status, told = run(path, "--set", "train.rounds=2", "--json", file)
    assert status == 0, told
    found = json.loads(file.read_text())
    assert found["devices_bring_data"] and "rows" not in found and "records" not in found
    assert "devices bring data of their own" in told and "requests.csv" not in told
    checkpoint = Checkpoint(tiny)
    sizes = predict_sizes(find_scenario(str(path)), checkpoint, Load(16, 16, 0, 0), 2)
    assert found["bytes"]["server_weights"] == sizes.server_weights
    command = shlex.split(told.rpartition("can be run: ")[2])
    assert command[:5] == ["flwr", "run", ".", "fedlora", "--stream"]
    pairs = tomllib.loads("\n".join(shlex.split(command[-1], posix=False)))
    assert pairs == {"scenario": str(path), "set": "train.rounds=2"}
    for verb in ("run", "plan"):
        done = CliRunner().invoke(cli.app, [verb, str(path)])
        assert done.exit_code != 0
        assert "data.train is not named" in str(done.exception) or "measure" in str(done.exception)


def test_what_can_be_checked_of_such_a_deployment_is_refused(tmp_path, tiny):
    path = deployed(tmp_path, tiny, '[lora]\ntargets = ["nope"]', '[ranks]\nstrategy = "unifrom"')
    status, told = run(path, "--set", "task.labels=[]")
    assert status == 2 and "requests.csv" not in told
    assert "lora.targets names 'nope'" in told and "'unifrom'" in told
    assert "task.labels is empty" in told
    status, told = run(path, "--set", 'task.labels=["no"]')
    assert status == 2 and "task.labels names 1 class" in told


def test_rows_that_a_deployment_names_are_looked_at_over_any_channel(tmp_path, tiny):
    records(tmp_path / "rows.jsonl", ["w4 w5"] * 30, "no")
    path = deployed(tmp_path, tiny, '[data]\ntrain = "rows.jsonl"', '[channel]\nmodel = "measured"')
    status, told = run(path, "--set", "federation.clients=2")
    assert status == 0, told
    assert f"data: {tmp_path / 'rows.jsonl'}" in told and "can be run: flwr run" in told
    status, told = run(path, "--set", "federation.clients=2", "--set", 'task.labels=["a", "b"]')
    assert status == 2 and "record 1 of " in told


@pytest.mark.parametrize(
    "options",
    [[], ["task.kind=causal_lm", "data.prompt_separator=w5"], ["link.residual_mib=0"]],
    ids=["pooled", "targets", "none"],
)
def test_levels_that_both_ends_keep_are_counted(tmp_path, tiny, options):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "w4 w5 w6 w7,A\nw8 w5 w10 w11,B\n" * 30)
    few = ["link.representation=entropy", "partition.kind=iid", "train.steps=12"]
    config = scenario(tiny, path, *few, *options)
    rows = view_rows(config, Checkpoint(tiny))
    assert rows is not None
    sizes = predict_sizes(config, Checkpoint(tiny), rows.load(16), len(rows.labels))
    again: list[int] = []

    def noted(client):
        def handle(frame):
            reply = client.handle(frame)
            if "fresh" in reply.tensors and "gradient" in reply.tensors:
                known = {n: t for n, t in reply.tensors.items() if not n.startswith("gradient")}
                again.append(sum(t.numel() * t.element_size() for t in known.values()))
            return reply

        return handle

    run = Federation(config, wrap=noted).run()
    theirs = run.server.training.batches.representations._own.values()
    assert sizes.server_levels == sum(kept.nbytes for _, kept in theirs)
    assert sizes.device_levels == run.clients[0]._cut.representations._kept.nbytes
    assert (sizes.device_levels > 0) == ("link.residual_mib=0" not in options)
    assert min(again) == 3 * (9 + 4 * (sizes.device_levels > 0))  # of three rows that are named
