"""A text is a text and a class is a class, by whatever reader: all else is refused by its place."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from clients.owner.origins import content
from clients.simulated_data import SimulatedData
from fedlora.config import DataConfig, Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.tasks import class_names, label_column, load_records, require_column

READERS = ("csv", "tsv", "jsonl", "saved")
NAN = math.nan


def write(folder: Path, reader: str, column: str, values: list[Any]) -> Path:
    """Write records of which one column has these values; the other is a text or a class."""
    rest = {"text": "t", "label": "one"}
    rows = [{**rest, column: value} for value in values]
    path = folder / f"data.{reader}"
    if reader == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif reader == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            separator = "," if reader == "csv" else "\t"
            writer = csv.DictWriter(file, list(rest), delimiter=separator, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def refusal(path: Path, *, text: str = "text", kind: str = "classification") -> str:
    """Return what the clients' process says of the data."""
    settings = [f"data.train={path}", f"data.text={text}", f"task.kind={kind}"]
    with pytest.raises(FedloraError) as caught:
        SimulatedData(with_overrides(Scenario(), settings), 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("blank", ["", "  ", "\u00a0"])
def test_an_empty_cell_is_no_class(tmp_path, reader, blank):
    path = write(tmp_path, reader, "label", ["a", "b", blank, blank])
    said = refusal(path)
    assert said == (
        "record 3 of data.train has no 'label' (empty), and 1 more have none; mend or remove them"
    )


def test_a_group_of_a_pattern_that_matched_nothing_is_no_class(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one: x\ntwo: y\n: z\n")
    config = DataConfig(train=str(path), pattern=r"(?P<label>\w*): (?P<text>.+)")
    records = load_records(config, "train", labelled=True)
    with pytest.raises(FedloraError, match=r"^record 3 of data\.train has no 'label' \(empty\)"):
        require_column(records, "label", "data.label", "data.train")


@pytest.mark.parametrize("reader", ["jsonl", "saved"])
@pytest.mark.parametrize(
    ("value", "why"), [(None, "null or absent"), (NAN, "NaN"), (math.inf, "Infinity")]
)
def test_null_and_what_is_no_number_are_no_class(tmp_path, reader, value, why):
    path = write(tmp_path, reader, "label", [1.0, 2.0, value])
    said = refusal(path)
    assert said == f"record 3 of data.train has no 'label' ({why}); mend or remove it"


@pytest.mark.parametrize("reader", ["jsonl", "saved"])
@pytest.mark.parametrize(
    ("value", "kind"), [(["a", "b"], "a list"), ({"name": "a"}, "an object"), ([], "a list")]
)
def test_a_list_or_an_object_is_no_class(tmp_path, reader, value, kind):
    values = [value, value] if reader == "saved" else ["a", value]
    said = refusal(write(tmp_path, reader, "label", values))
    assert f"has {kind} in 'label', where data.label needs a class; write one name" in said
    assert f"record {1 if reader == 'saved' else 2} of " in said


@pytest.mark.parametrize("reader", ["jsonl", "saved"])
@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_a_list_of_messages_is_no_text_and_the_mend_is_the_key_for_conversations(
    tmp_path, reader, kind
):
    message = [{"role": "user", "content": "Grüße"}]
    path = write(tmp_path, reader, "messages", [message, message])
    said = refusal(path, text="messages", kind=kind)
    assert "record 1 of " in said
    assert "has a list in 'messages', where data.text needs a text" in said
    assert "name a column of conversations in data.messages" in said
    assert "Grüße" not in said


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_text_is_refused_and_a_blank_one_is_left_to_the_task(tmp_path, reader):
    said = refusal(write(tmp_path, reader, "text", ["x", ""]))
    assert said.endswith("has no 'text' (empty); mend or remove it")
    assert "record 2 of " in said
    (tmp_path / "blank").mkdir()
    path = write(tmp_path / "blank", reader, "text", ["x", " "])
    assert [r["text"] for r in load_records(DataConfig(train=str(path)), "train")] == ["x", " "]


@pytest.mark.parametrize("reader", ["jsonl", "saved"])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([True, False], ["false", "true"]),
        ([1.0, 0.0], ["0.0", "1.0"]),
        ([1, 0, -1], ["-1", "0", "1"]),
        (["NaN", "null", "nan"], ["NaN", "nan", "null"]),
    ],
)
def test_numbers_truth_values_and_any_word_are_classes(tmp_path, reader, values, names):
    config = DataConfig(train=str(write(tmp_path, reader, "label", values)))
    records = load_records(config, "train", labelled=True)
    require_column(records, "label", "data.label")
    assert class_names(records, config, "data.train") == names


def test_other_columns_may_hold_anything_and_stay_what_the_ledger_knows(tmp_path):
    """An owner's ledger knows a record by all of its columns, as earlier releases wrote them."""
    row = {"text": "x", "label": "a", "tags": ["é", 1], "meta": {"k": None}, "score": NAN}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (record,) = load_records(DataConfig(train=str(path)), "train", labelled=True)
    old = ["x", "a", json.dumps(["é", 1]), json.dumps({"k": None}), "NaN"]
    assert content(record) == json.dumps(old, ensure_ascii=False).encode()


def test_a_label_that_a_language_model_does_not_use_may_be_anything(tmp_path):
    features = Features({"text": Value("string"), "label": List(Value("string"))})
    rows = [{"text": "w", "label": ["a"]}] * 2
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    settings = [f"data.train={tmp_path / 'saved'}", "task.kind=causal_lm", "partition.min_rows=1"]
    assert len(SimulatedData(with_overrides(Scenario(), settings), 1).records) == 2


def test_a_list_is_no_group_to_deal_by_and_an_empty_one_is_a_group(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "x", "label": str(n % 2), "who": "" if n % 2 else "me"} for n in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    by_who = ["partition.kind=column", "partition.column=who", "partition.min_rows=1"]
    config = with_overrides(Scenario(), [f"data.train={path}", *by_who])
    assert [len(part) for part in SimulatedData(config, 2).parts] == [4, 4]
    path.write_text("\n".join(json.dumps({**row, "who": ["me"]}) for row in rows))
    with pytest.raises(FedloraError, match=r"has a list in 'who', where partition\.column needs"):
        SimulatedData(config, 2)


def test_data_of_one_class_are_refused_with_the_class():
    records = [{"text": "x", "label": "good"}] * 24
    with pytest.raises(FedloraError, match=r"the data has 1 class, 'good' in 'label' of all 24 re"):
        class_names(records, DataConfig(), "data.csv")
    with pytest.raises(FedloraError, match=r"24 records that data\.max_rows takes of data\.csv"):
        class_names(records, DataConfig(max_rows=24), "data.csv")


def test_empty_keys_are_refused_for_what_they_are():
    with pytest.raises(FedloraError, match=r"^data\.label is empty; name the column"):
        label_column(DataConfig(label=""), labelled=True)
    assert label_column(DataConfig(label=""), labelled=False) == ""
    for which in ("train", "test"):
        with pytest.raises(FedloraError, match=rf"^data\.{which} is empty; name a file of records"):
            load_records(DataConfig(train="", test=""), which)


def test_a_refusal_quotes_no_column_whole():
    with pytest.raises(FedloraError) as caught:
        require_column([{"x" * 3000: "a", "y": "b"}], "text", "data.text")
    assert len(str(caught.value)) < 300
