"""``fedlora plan`` shows a forecast by client, and refuses what cannot be run."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedlora import cli
from simulations import federate

SMALL = ["--set", "data.max_rows=200", "--set", "partition.kind=iid", "--set", "train.rounds=2"]
FEW = ["--set", "privacy.epsilon=none", "--set", "link.r_cut=19"]


def run(*arguments):
    done = CliRunner().invoke(cli.app, ["plan", "quickstart", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_plan_tells_bits_by_client_air_time_memory_and_what_is_not_counted(tmp_path):
    file = tmp_path / "plan.json"
    status, told = run(*SMALL, "--json", file)
    assert status == 0, told
    plan = json.loads(file.read_text())
    assert list(plan["clients"]) == [str(number) for number in range(8)]
    for way, kinds in plan["totals"]["bits"].items():
        for kind, bits in kinds.items():
            assert bits == sum(own["bits"][way][kind] for own in plan["clients"].values())
    assert plan["samples"] == 2 * 30 * 8 * 8
    words = ["quickstart, 2 rounds", "bits a sample", "of fp32 each way at every step", "air time"]
    words += ["evaluation, apart", "memory of the server", "airllm may choose otherwise"]
    assert not [word for word in words if word not in told]
    narrow = tmp_path / "narrow.json"
    assert run(*SMALL, *FEW, "--json", narrow)[0] == 0
    few = json.loads(narrow.read_text())["totals"]["bits"]
    assert (
        few["down"]["representation"] * 128 == plan["totals"]["bits"]["down"]["representation"] * 19
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("link.gradient_bits=4", "link.gradient_bits is 4, and link.gradient is fp32"),
        ("link.r_cut=4", "link.r_cut is 4, and a head of 20 classes tells 19"),
    ],
)
def test_what_cannot_be_run_is_not_planned(setting, words):
    status, told = run("--set", setting)
    assert status == 2
    assert words in " ".join(told.split())


@pytest.mark.parametrize("strategy", ["greedy", "random"])
def test_what_a_strategy_of_budgets_alone_sends_is_foreseen_to_the_bit(tmp_path, strategy):
    keys = ["privacy.epsilon=none", "data.max_rows=60", "data.test=", "partition.kind=iid"]
    keys += ["train.rounds=3", "train.steps=1", "federation.clients=3", "compute.threads=1"]
    keys += ["evaluate.baseline=false", f"ranks.strategy={strategy}"]
    file = tmp_path / "plan.json"
    status, told = run(*(word for key in keys for word in ("--set", key)), "--json", file)
    assert status == 0, told
    plan = json.loads(file.read_text())
    result = federate("quickstart", out=tmp_path / "run", overrides=keys, workers=1)
    for client, own in plan["clients"].items():
        records = [round_["clients"][client] for round_ in result.rounds]
        sent = [record["adapter_bits"] for record in records]
        assert own["bits"]["down"]["adapter"] == sum(sent) > 0
        air = sum(record["air_seconds"] for record in records)
        assert own["air_seconds"] == pytest.approx(air, rel=1e-9)
    assert plan["totals"]["bits"] == result.summary["bits"]


def test_equal_rows_behind_a_clients_blocks_are_said_to_be_counted_apart(tmp_path):
    front = ["--set", "model.client_front=1"]
    told = [run(*SMALL, *more)[1] for more in (front, [*front, "--set", "link.activation=fp32"])]
    said = ["as if no two rows were equal" in " ".join(own.split()) for own in told]
    assert said == [True, False]
