"""Every kind of file gives the same records, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from fedlora.config import DataConfig
from fedlora.errors import FedloraError
from fedlora.tasks import load_records, require_column

RECORDS = [
    {"text": 'say "yes", twice', "label": "one"},
    {"text": "naïve – 日本\u2028語", "label": "two"},
    {"text": "plain", "label": "one"},
]


def _load(path, **settings):
    return load_records(DataConfig(train=str(path), **settings), "train")


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_all_file_kinds_give_the_same_records(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(RECORDS)
    tsv = "".join(
        f"{r['text']}\t{r['label']}\n" for r in [{"text": "text", "label": "label"}, *RECORDS]
    )
    _write(tmp_path / "a.tsv", tsv)
    _write(tmp_path / "a.jsonl", "\n".join(json.dumps(record) for record in RECORDS))
    _write(tmp_path / "a.txt", "\n\n".join(f"{r['label']}:\n{r['text']}" for r in RECORDS))
    Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    pattern = {"pattern": r"(?P<label>\w+):\n(?P<text>.+)", "record_separator": "\n\n"}
    assert _load(tmp_path / "a.csv") == RECORDS
    assert _load(tmp_path / "a.tsv") == RECORDS
    assert _load(tmp_path / "a.jsonl") == RECORDS
    assert _load(tmp_path / "a.txt", **pattern) == RECORDS
    assert _load(tmp_path / "saved") == RECORDS


def test_csv_keeps_line_breaks_inside_quotes(tmp_path):
    path = _write(tmp_path / "a.csv", 'label,text\r\none,"first\nsecond"\r\n\r\ntwo,last\r\n')
    assert [record["text"] for record in _load(path)] == ["first\nsecond", "last"]


def test_a_long_text_in_a_csv_is_read_whole(tmp_path):
    long = "word " * 40_000
    path = _write(tmp_path / "a.csv", f"text,label\n{long},one\n")
    assert _load(path) == [{"text": long, "label": "one"}]


def test_one_column_of_texts_may_hold_any_separator(tmp_path):
    path = _write(tmp_path / "a.tsv", "text\na, b; c\n")
    assert _load(path) == [{"text": "a, b; c"}]
    path = _write(tmp_path / "b.csv", "first; second\nx\n")
    assert _load(path, text="first; second") == [{"first; second": "x"}]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = _write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\nx,y\n")
    assert _load(path) == [{"text": "x", "label": "y"}]


def test_columns_name_the_fields_of_a_file_without_header(tmp_path):
    path = _write(tmp_path / "a.tsv", 'an "open quote\t1\nmore\t0\n')
    assert _load(path, columns=("text", "label")) == [
        {"text": 'an "open quote', "label": "1"},
        {"text": "more", "label": "0"},
    ]


def test_json_numbers_become_strings_and_null_is_absent(tmp_path):
    path = _write(tmp_path / "a.jsonl", '{"text": "x", "label": 3, "score": null}\n\n')
    assert _load(path) == [{"text": "x", "label": "3"}]


def test_text_without_pattern_is_one_column(tmp_path):
    path = _write(tmp_path / "a.txt", "one\r\n\r\ntwo\r\n")
    assert _load(path, text="line") == [{"line": "one"}, {"line": "two"}]


def test_records_off_the_pattern_are_left_out_with_a_warning(tmp_path, caplog):
    path = _write(tmp_path / "a.txt", "ANN:\nHello,\nyou.\n\nno speaker here\n\nBOB:\nBye.\n")
    with caplog.at_level(logging.WARNING):
        records = _load(path, record_separator="\n\n", pattern=r"(?P<speaker>.+?):\n(?P<text>.+)")
    assert records == [
        {"speaker": "ANN", "text": "Hello,\nyou."},
        {"speaker": "BOB", "text": "Bye."},
    ]
    assert "1 of 3 records" in caplog.text


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_max_rows_takes_the_first_and_reads_no_further(tmp_path, name):
    separator = "," if name.endswith("csv") else "\t"
    path = _write(tmp_path / name, f"text\none\ntwo\nragged{separator}line\n")
    assert _load(path, max_rows=2) == [{"text": "one"}, {"text": "two"}]
    whole = _write(tmp_path / f"whole-{name}", "text\none\n")
    assert _load(whole, max_rows=10**12) == [{"text": "one"}]


def test_saved_dataset_gives_class_names_and_leaves_out_other_columns(tmp_path):
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=["no", "yes"]),
            "ids": Sequence(Value("int32")),
        }
    )
    dataset = Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, -1], "ids": [[1], [2], [3]]}, features=features
    )
    dataset.save_to_disk(tmp_path / "saved")
    records = _load(tmp_path / "saved")
    assert records == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}, {"text": "c"}]
    assert _load(tmp_path / "saved", max_rows=1) == records[:1]


def test_split_of_a_saved_dataset_follows_the_scenario(tmp_path):
    parts = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "validation", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    assert load_records(DataConfig(train=path), "train") == [{"text": "train"}]
    assert load_records(DataConfig(train=path, split="validation"), "train") == [
        {"text": "validation"}
    ]
    assert load_records(DataConfig(test=path), "test") == [{"text": "test"}]
    assert load_records(DataConfig(test=path + "/validation"), "test") == [{"text": "validation"}]
    with pytest.raises(FedloraError, match=r"no split 'dev' but train, validation, test"):
        load_records(DataConfig(train=path, split="dev"), "train")


def test_hub_name_loads_the_named_split(tmp_path, monkeypatch):
    """The hub library also takes a local folder, so this runs without a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repo").mkdir()
    _write(tmp_path / "repo" / "train.csv", "text\nfor training\n")
    _write(tmp_path / "repo" / "validation.csv", "text\nfor validation\n")
    name = f"hub:{tmp_path / 'repo'}"
    assert load_records(DataConfig(train=name), "train") == [{"text": "for training"}]
    config = DataConfig(test=name + "@validation")
    assert load_records(config, "test") == [{"text": "for validation"}]
    with pytest.raises(FedloraError, match=r"data\.test.*cannot be loaded"):
        load_records(DataConfig(test=name), "test")


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.csv", "", {}, r"data\.train.*holds no records"),
        ("a.csv", "text,label\n", {}, "holds no records"),
        ("a.jsonl", "\n\n", {}, "holds no records"),
        ("a.txt", " \n", {}, "holds no records"),
        ("a.csv", "text,label\na,b\nc\n", {}, "line 3 has 1 fields for 2 columns"),
        ("a.tsv", "a\tb\n", {"columns": ("text",)}, "line 1 has 2 fields for 1 columns"),
        ("a.csv", 'text\n"open\n', {}, "line 2 is not valid csv"),
        ("a.csv", "text,text\na,b\n", {}, "names a column twice"),
        ("a.csv", "sentence,texts\na,b\n", {}, r"data\.text is 'text'.*did you mean 'texts'"),
        ("a.csv", "x,y\na,b\n", {}, r"columns 'x', 'y'; set data\.text"),
        ("a.csv", b"text\nok\n\xe9t\xe9\n", {}, "line 3 has byte 0xe9.*UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', {}, "line 2 is not valid JSON"),
        ("a.jsonl", '["text"]\n', {}, "line 1 holds no object"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"label": "b"}\n',
            {},
            r"record 2 of .*a\.jsonl has no 'text' \(null or",
        ),
        ("a.jsonl", '{"text": null}\n{"text": "b"}', {}, r"record 1 .*has no 'text' .*remove it"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d b"}', {}, r"line 2 has '\\ud83d b', .*mend"),
        (
            "a.jsonl",
            '{"text": "a", "l\\udc00": "b"}',
            {},
            r"line 1 has 'l\\udc00', which is no UTF",
        ),
        ("a.csv", "text;label\na;b\n", {}, r"'text;label', which ';' separates where .*',';"),
        ("a.csv", "text\tlabel\na, b\tc\n", {}, r"save it with ',', or name it \.tsv"),
        (
            "a.tsv",
            "text,label\na,b\n",
            {},
            r"which ',' separates where \.tsv expects '\\t'; .*\.csv",
        ),
        ("a.csv", "a;b\n", {"columns": ("text", "label")}, r"has the line 'a;b', which ';'"),
        ("a.txt", "a\n", {"pattern": "("}, r"data\.pattern '\(' is no regular expression"),
        ("a.txt", "a\n", {"pattern": ".+"}, "names no column"),
        ("a.txt", "a\n", {"pattern": "(?P<text>b)"}, "matches none of the 1 records.*'a'"),
        ("a.txt", "a\n", {"record_separator": ""}, r"data\.record_separator is empty"),
        (
            "a.parquet",
            b"PAR1\x15\xa4",
            {},
            r"kind '\.parquet' is not known; use \.csv.*from_parquet",
        ),
        ("a.csv.gz", b"\x1f\x8b", {}, r"kind '\.gz' is not known"),
    ],
)
def test_bad_file_is_one_sentence_with_the_place(tmp_path, name, content, settings, message):
    path = _write(tmp_path / name, content)
    with pytest.raises(FedloraError, match=message) as caught:
        _load(path, **settings)
    assert "\n" not in str(caught.value)


def test_missing_file_and_foreign_folder_are_one_sentence(tmp_path):
    with pytest.raises(FedloraError, match=r"data\.train is .*no such data"):
        _load(tmp_path / "a.csv")
    with pytest.raises(FedloraError, match=r"no saved dataset .*save_to_disk"):
        _load(tmp_path)


def test_missing_label_column_names_those_there_are():
    with pytest.raises(FedloraError, match=r"data\.label is 'lable'.*did you mean 'label'"):
        require_column(RECORDS, "lable", "data.label")
    require_column(RECORDS, "label", "data.label")
    with pytest.raises(FedloraError, match=r"columns 'text', 'label'; set data\.label"):
        require_column([{"text": "a", "label": "b"}], "intent", "data.label")  # no slip of text


def test_plain_files_need_no_heavy_library(tmp_path):
    for name, content in {
        "a.csv": "text\nx\n",
        "a.tsv": "text\nx\n",
        "a.jsonl": '{"text": "x"}\n',
        "a.txt": "x\n",
    }.items():
        _write(tmp_path / name, content)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedlora.config import DataConfig\n"
        "from fedlora.tasks.data import load_records\n"
        "import fedlora.tasks.metrics, fedlora.tasks.partition, fedlora.tasks.tokenizer\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    assert load_records(DataConfig(train=str(path)), 'train') == [{'text': 'x'}]\n"
        "heavy = {'datasets', 'flwr_datasets', 'pandas', 'pyarrow', 'transformers', 'peft', 'ray',"
        " 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
