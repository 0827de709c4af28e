"""Records that a run cannot use are refused, or left out and counted, before it starts."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
from support.federation import scenario

from clients.build import load_parts
from clients.own_records import OwnRecords
from clients.simulated_data import SimulatedData
from fedlora.check import check_scenario
from fedlora.config import NodeKeys, Scenario
from fedlora.errors import FedloraError
from fedlora.server.run import ServerRun
from fedlora.tasks import IGNORED
from simulations.in_process import Record

ROWS, NEW = 101, 101
"""Rows of the tiny models' embedding, and the id of the token that it lacks."""


@pytest.fixture
def beyond(tiny, tmp_path) -> Path:
    """A decoder whose tokenizer got a token that its embedding never did."""
    folder = tmp_path / "beyond"
    shutil.copytree(tiny["llama"], folder)
    table = json.loads((folder / "tokenizer.json").read_text())
    token = {**table["added_tokens"][0], "id": NEW, "content": "[CARD]"}
    table["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return folder


def texts(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


PLAIN = [
    f"w{number} w{number + 1},{'north' if number % 2 else 'south'}" for number in range(10, 40)
]


def build_all(config: Scenario) -> None:
    data = SimulatedData(config, config.federation.clients)
    parts = load_parts(config, data.labels)
    for client in range(config.federation.clients):
        data.build(parts, client)


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
@pytest.mark.parametrize("which", ["train", "test"])
def test_a_record_with_a_token_beyond_the_embedding_is_refused_with_both_sizes(
    beyond, tmp_path, kind, which
):
    plain = texts(tmp_path / "plain.csv", *PLAIN)
    odd = texts(tmp_path / "odd.csv", *PLAIN[:6], "w10 [CARD] w11,north", *PLAIN[6:])
    files = {"train": plain, "test": plain} | {which: odd}
    config = scenario(beyond, files["train"], f"data.test={files['test']}", f"task.kind={kind}")
    for refuse in (check_scenario, build_all):
        with pytest.raises(FedloraError) as caught:
            refuse(config)
        said = str(caught.value)
        assert said.startswith("record 7 of ")
        assert f"has the token '[CARD]' with the id {NEW}" in said
        assert f"embedding has {ROWS} rows for the tokenizer's ids up to {NEW}" in said
        assert "resize_token_embeddings and save the model, or take the token out" in said
    assert (caught.value.kind, caught.value.numbers) == ("record", {"record": 7})


def test_a_tokenizer_with_more_ids_than_its_texts_need_is_no_fault(beyond, tmp_path):
    """So are published checkpoints, whose padding token for one was added and never trained."""
    config = scenario(beyond, texts(tmp_path / "plain.csv", *PLAIN))
    check_scenario(config)
    build_all(config)


@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_a_begin_or_end_beyond_the_embedding_is_refused_without_any_text(beyond, tmp_path, kind):
    """Of the server too, which has no data; a device is refused before its first step."""
    settings = json.loads((beyond / "tokenizer_config.json").read_text())
    table = json.loads((beyond / "tokenizer.json").read_text())
    if kind == "causal_lm":
        settings["eos_token"] = "[CARD]"
    else:
        table["post_processor"]["special_tokens"]["<s>"]["ids"] = [NEW]
    (beyond / "tokenizer_config.json").write_text(json.dumps(settings))
    (beyond / "tokenizer.json").write_text(json.dumps(table))
    config = scenario(beyond, texts(tmp_path / "plain.csv", *PLAIN), f"task.kind={kind}")
    for refuse in (check_scenario, load_parts, lambda config: ServerRun(config, Record())):
        with pytest.raises(FedloraError, match=rf"every text has the token .* {NEW}, .*{ROWS} r"):
            refuse(config)


LONG = [f"{'w9 ' * 20}w5 w{number},north" for number in range(10, 22)]
SHORT = [f"w{number} w5 w11,south" for number in range(10, 28)]
PROMPTS = ("task.kind=causal_lm", "data.prompt_separator=w5 ", "task.max_length=16")
TOLD = "have nothing to train on within task.max_length 16, such as those with a prompt as long"


def test_records_whose_prompts_are_as_long_as_max_length_are_counted_and_told(
    tiny, tmp_path, caplog
):
    mixed = [row for pair in zip(LONG, SHORT, strict=False) for row in pair]
    data = texts(tmp_path / "data.csv", *mixed, *SHORT[12:])
    config = scenario(tiny["llama"], data, *PROMPTS, "federation.clients=2")
    with caplog.at_level(logging.WARNING):
        check_scenario(config)
    assert [record.getMessage() for record in caplog.records] == [
        f"{data}: 12 of 30 records {TOLD}, and are left out; raise it or shorten the prompts"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_scenario(scenario(tiny["llama"], data, *PROMPTS, "task.max_length=64"))
    assert not caplog.records


def test_a_test_file_is_counted_apart(tiny, tmp_path, caplog):
    train = texts(tmp_path / "train.csv", *SHORT)
    test = texts(tmp_path / "test.csv", *LONG[:3], *SHORT[:2])
    with_test = (*PROMPTS, f"data.test={test}")
    with caplog.at_level(logging.WARNING):
        check_scenario(scenario(tiny["llama"], train, *with_test, "federation.clients=2"))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{test}: 3 of 5 records {TOLD}")
    config = scenario(tiny["llama"], train, *with_test, "federation.clients=3")
    for refused in (check_scenario, build_all):  # the third client has the third record alone
        with pytest.raises(FedloraError, match="no record has a token to predict"):
            refused(config)


def test_a_device_tells_its_own_log_what_it_leaves_out(tiny, tmp_path, caplog):
    data = texts(tmp_path / "own.csv", *LONG[:4], *SHORT)
    keys = NodeKeys.read({"data": str(data), "model": str(tiny["llama"]), "partition-id": 0})
    config = scenario(tiny["llama"], data, *PROMPTS, "data.holdout=0")
    own = OwnRecords(config, keys)
    with caplog.at_level(logging.WARNING, logger="fedlora.edge"):
        samples = own.encode(own.records, load_parts(config))
    assert len(samples) == len(SHORT)
    assert f"4 of {len(own.records)} records {TOLD}" in caplog.text


def test_under_a_limit_a_record_without_a_class_takes_part_with_noise_alone(tiny, tmp_path, caplog):
    """Refused, it would tell of its label; taken for the class of that name, train on it."""
    data = tmp_path / "own.jsonl"
    labels = ["north", math.nan, None, "", ["north"], {"north": 1}, "south", "NaN"]
    rows = [{"text": f"w{number + 10}", "label": label} for number, label in enumerate(labels)]
    data.write_text("\n".join(map(json.dumps, rows)))
    keys = NodeKeys.read(
        {
            **{"data": str(data), "model": str(tiny["llama"]), "partition-id": 0},
            **{"text": "text", "label": "label", "privacy-epsilon": 1.0, "holdout": 0.0},
            **{"privacy-ledger": str(tmp_path / "ledger"), "state": str(tmp_path / "state")},
        }
    )
    config = scenario(tiny["llama"], data, 'task.labels=["north","NaN"]', "partition.min_rows=1")
    own = OwnRecords(config, keys)
    with caplog.at_level(logging.WARNING, logger="fedlora.edge"):
        samples = own.encode(own.records, load_parts(config))
    assert [sample.target for sample in samples] == [0, *[IGNORED] * 6, 1]
    assert f"6 of {len(labels)} records have a label that is none of the run's" in caplog.text


def test_a_class_of_3000_letters_is_not_quoted_whole(tiny, tmp_path):
    data = texts(tmp_path / "data.csv", *PLAIN, f"w10,{'A' * 3000}")
    config = scenario(tiny["llama"], data, 'task.labels=["north","south"]')
    for refuse in (check_scenario, build_all):
        with pytest.raises(FedloraError, match=r"AAAA.*not among the 2") as caught:
            refuse(config)
        assert len(str(caught.value)) < 400
        assert "record 31 of" in str(caught.value)


def test_one_class_in_all_the_data_is_refused_and_of_several_told(tiny, tmp_path, caplog):
    data = texts(tmp_path / "data.csv", *(f"w{number},north" for number in range(10, 40)))
    for refuse in (check_scenario, build_all):
        with pytest.raises(FedloraError, match=r"the data has 1 class, 'north' .* of all 30 reco"):
            refuse(scenario(tiny["llama"], data))
    with caplog.at_level(logging.WARNING):
        check_scenario(scenario(tiny["llama"], data, 'task.labels=["north","south"]'))
    assert [r.getMessage() for r in caplog.records] == [
        f"all records of {data} have the class 'north'"
    ]
    for refuse in (check_scenario, lambda config: ServerRun(config, Record())):
        with pytest.raises(FedloraError, match=r"task\.labels names 1 class, 'north'; name two or"):
            refuse(scenario(tiny["llama"], data, 'task.labels=["north"]'))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train=", r"^data\.train is empty; name a file of records"),
        ("data.label=", r"^data\.label is empty; name the column"),
    ],
)
def test_an_empty_key_is_refused_before_anything_starts(tiny, records, setting, message):
    for refuse in (check_scenario, build_all):
        with pytest.raises(FedloraError, match=message):
            refuse(scenario(tiny["llama"], records, setting))
