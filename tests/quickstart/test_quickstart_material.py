from __future__ import annotations

import csv
import math
import socket
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from simulations.quickstart.corpus import (
    FOLDER,
    TEST_ROWS,
    TEST_SEED,
    TRAIN_ROWS,
    TRAIN_SEED,
    write_dataset,
)
from simulations.quickstart.dialects import DIALECTS
from simulations.quickstart.grammar import SLOTS
from simulations.quickstart.intents import INTENTS
from simulations.quickstart.pretrain import main as pretrain, train_tokenizer
from simulations.quickstart.stories import iter_pretraining_text

TRAIN, TEST, DECODER = FOLDER / "requests.csv", FOLDER / "requests-test.csv", FOLDER / "decoder"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the quickstart must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("path", "rows", "seed", "held_out"),
    [(TRAIN, TRAIN_ROWS, TRAIN_SEED, False), (TEST, TEST_ROWS, TEST_SEED, True)],
    ids=["train", "test"],
)
def test_generator_writes_the_committed_file_byte_for_byte(path, rows, seed, held_out, tmp_path):
    write_dataset(tmp_path / "again.csv", rows, seed, held_out)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_another_seed_gives_other_requests(tmp_path):
    write_dataset(tmp_path / "other.csv", TRAIN_ROWS, TRAIN_SEED + 10)
    train = {row["text"] for row in read(TRAIN)}
    other = [row["text"] for row in read(tmp_path / "other.csv")]
    assert sum(text in train for text in other) < 0.25 * len(other)


def test_every_dialect_has_every_intent_with_its_own_frequencies():
    rows = read(TRAIN)
    cells = Counter((row["dialect"], row["intent"]) for row in rows)
    assert set(cells) == {(d, i) for d in DIALECTS for i in INTENTS}
    total = Counter(row["intent"] for row in rows)
    for dialect in DIALECTS:
        size = sum(cells[dialect, intent] for intent in INTENTS)
        distance = sum(
            abs(cells[dialect, intent] / size - total[intent] / len(rows)) for intent in INTENTS
        )
        assert distance / 2 > 0.1, dialect


def test_test_file_has_all_labels_and_shares_no_text_with_training():
    train, test = read(TRAIN), read(TEST)
    assert {row["intent"] for row in test} == set(INTENTS)
    assert {row["dialect"] for row in test} == set(DIALECTS)
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts) == TRAIN_ROWS + TEST_ROWS


def test_training_file_never_shows_held_out_slot_values():
    # Values of one word that no other slot or phrase uses.
    held_out = {v for slot in SLOTS.values() for v in slot.held_out if " " not in v}
    words = {word for row in read(TRAIN) for word in row["text"].replace(",", "").split()}
    assert held_out
    assert not held_out & words
    assert held_out <= {word for row in read(TEST) for word in row["text"].replace(",", "").split()}


def test_pretraining_text_has_no_request_of_the_test_file():
    openings = {
        text.split(separator)[0]
        for text in islice(iter_pretraining_text(1), 20_000)
        for separator in (":", ". ", ", so ")
    }
    assert not openings & {row["text"] for row in read(TEST)}
    # The check can fail: requests of the training file do occur.
    assert openings & {row["text"] for row in read(TRAIN)}


def test_files_are_small():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.csv")) < 400_000
    assert sum(file.stat().st_size for file in DECODER.iterdir()) < 4_000_000


def test_tokenizer_starts_every_text_with_bos_and_pads_on_the_right():
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    batch = tokenizer(["lock the front door", "call anna"], padding=True)
    assert tokenizer.padding_side == "right"
    assert [ids[0] for ids in batch["input_ids"]] == [tokenizer.bos_token_id] * 2
    assert batch["input_ids"][1][-1] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert batch["attention_mask"][1][-1] == 0


def test_bare_tokenizer_file_gives_the_ids_of_the_hugging_face_tokenizer():
    bare = Tokenizer.from_file(str(DECODER / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    texts = [row["text"] for row in read(TEST)] + ["Prüfe die Tür 🚪", ""]
    ids = tokenizer(texts)["input_ids"]
    assert [encoding.ids for encoding in bare.encode_batch(texts)] == ids
    assert tokenizer.decode(ids[-2], skip_special_tokens=True).strip() == "prüfe die tür 🚪"
    # A budget of 48 tokens cuts nothing.
    assert max(map(len, ids)) <= 48


def test_decoder_has_learned_the_language():
    model = AutoModelForCausalLM.from_pretrained(DECODER)
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    assert len(tokenizer) == model.config.vocab_size
    batch = tokenizer(
        list(islice(iter_pretraining_text(seed=12345), 64)),
        padding=True,
        truncation=True,
        max_length=model.config.max_position_embeddings,
        return_tensors="pt",
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        loss = model(**batch, labels=labels).loss.item()
    assert loss < 0.25 * math.log(model.config.vocab_size)


def test_script_trains_the_committed_tokenizer(tmp_path):
    train_tokenizer(seed=0).save_pretrained(tmp_path)
    committed = Tokenizer.from_file(str(DECODER / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.to_str() == committed.to_str()


def test_script_makes_a_folder_of_the_committed_shape(tmp_path):
    threads = torch.get_num_threads()
    pretrain(tmp_path / "decoder", steps=2, rows=2)
    torch.set_num_threads(threads)
    assert {f.name for f in (tmp_path / "decoder").iterdir()} == {f.name for f in DECODER.iterdir()}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    committed = AutoModelForCausalLM.from_pretrained(DECODER)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in committed.named_parameters()
    }
