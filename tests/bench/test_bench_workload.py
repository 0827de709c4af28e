"""Texts fill every row, whatever the tokenizer, and models have the shape that they claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fedlora.tasks import load_tokenizer
from simulations.bench import models
from simulations.bench.workload import Load, Workload


@pytest.mark.parametrize("model", ["gpt2", "decoder"])
def test_every_row_of_a_batch_is_full(model, tmp_path):
    path = models.model_path(model, tmp_path, tiny=model == "gpt2")
    workload = Workload(Load(path, "causal_lm", 3, 2, 40), 1, tmp_path)
    folder = (
        tmp_path / model
        if model == "gpt2"
        else Path(models.__file__).parents[1] / "quickstart/decoder"
    )
    ids, classes = next(workload.batches(folder))
    assert ids.shape == (6, 40)
    assert classes.tolist() == [-1] * 6


def test_batches_hold_both_classes_and_repeat_for_one_seed(tmp_path):
    path = models.model_path("minilm", tmp_path, tiny=True)
    load = Load(path, "classification", 3, 2, 16)
    first, again = (Workload(load, 1, tmp_path).batches(Path(path)) for _ in range(2))
    for _ in range(3):
        (ids, classes), (same_ids, same_classes) = next(first), next(again)
        assert ids.equal(same_ids) and classes.equal(same_classes)
        assert classes.bincount().tolist() == [3, 3]


def test_the_random_model_has_gpt2s_tokenizer_size_and_reads_any_text(tmp_path):
    file = tmp_path / "tokenizer.json"
    models._tokenizer(models.GPT2_VOCABULARY).save(str(file))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == models.GPT2_VOCABULARY
    text = "Zürich, naïve: 12 €\n"
    assert tokenizer.decode(tokenizer.encode(text, 100)) == text
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other(text)["input_ids"] == tokenizer.encode(text, 100)
