"""What clients say at the end decides nothing that a run leaves on disk, and cannot end it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors import safe_open
from support.federation import Federation, scenario

from fedlora.report import RunFolder
from fedlora.server.exchange.holdings import classes_of, holdings
from fedlora.server.results import write_results

NONSENSE: list[Any] = [None, 7, "abc", [1, 2], [], [["a"]], {"a": 1}, b"x"]


@pytest.mark.parametrize("labels", NONSENSE)
@pytest.mark.parametrize("rows", [*NONSENSE, [-1, 2], [True, 1], [1 << 60, 1], [1]])
def test_label_counts_that_are_none_are_left_out(labels, rows):
    told = {"0": {"labels": labels, "label_rows": rows}, "1": {"labels": ["a"], "label_rows": [3]}}
    assert holdings(told) == {"a": {"1": 3}}


def test_class_names_are_the_scenarios_whatever_is_told():
    told = {"0": {"classes": ["yes", "no"]}}
    assert classes_of(["north", "south"], told) == ["north", "south"]
    assert classes_of((), told) == ["yes", "no"]
    assert classes_of((), told | {"1": {"classes": ["no", "yes"]}}) == []
    assert classes_of((), {"0": {"classes": "abc"}}) == []


def test_a_deployment_writes_its_own_class_names_into_the_head(tiny, records, tmp_path):
    named = 'task.labels=["north", "south", "west"]'
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.steps=1", named)
    federation = Federation(config).run()
    folder = RunFolder.create(tmp_path / "run")
    for record in federation.recorder.rounds:
        folder.append_round(record)
    federation.server.end()
    write_results(folder, federation.server, {})
    with safe_open(folder.head, "pt") as head:
        assert json.loads(head.metadata()["labels"]) == ["north", "south", "west"]
    assert folder.read_summary() is not None
