"""Conversations give the ids of apply_chat_template, and what the assistant says is learnt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.chat_folders import SHAPES, SMOLLM2, tagged, untagged, write_chat_tokenizer
from transformers import AutoTokenizer

from fedlora.config import DataConfig, TaskConfig
from fedlora.errors import FedloraError
from fedlora.tasks import IGNORED, Sample, load_records, load_tokenizer
from fedlora.tasks.causal_lm import CausalLanguageModelling

PIECES = (
    "the",
    "dog",
    " ",
    "\n",
    "\n\n",
    "  ",
    "café",
    "é",
    "日本",
    "🤗",
    "a" * 30,
    "9",
    "£",
    "</s>",
)
PIECES += ("<|im_end|>", "ASSISTANT: ", "{{ x }}", "\\n", '"', "'")
STRICT = ("system in the first turn", "own name for the assistant")


def samples(folder: Path, *conversations: Any, max_length: int = 1000) -> list[Sample]:
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=max_length))
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in conversations))
    data = DataConfig(train=str(path), messages="messages")
    return task.samples(load_records(data, "train"), load_tokenizer(folder), data)


def learnt(sample: Sample) -> list[int]:
    """Return the mask of what is predicted, place by place; nothing predicts the first."""
    assert isinstance(sample.target, tuple)
    return [0, *(int(target != IGNORED) for target in sample.target[:-1])]


def reference(folder: Path, messages: Any, **options: Any) -> tuple[list[int], list[int]]:
    """Return ids and mask of transformers."""
    made = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    return made["input_ids"], [0, *made["assistant_masks"][1:]]


def conversation(rng: random.Random, shape: str) -> list[dict[str, str]]:
    def said(end: str = "") -> str:
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 6))) + end
        return text if text.strip() else "x"

    messages = []
    if rng.random() < 0.5 and shape != "own name for the assistant":
        messages.append({"role": "system", "content": said()})
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": said()})
        # of a last character that is several tokens transformers marks the first token alone
        messages.append({"role": "assistant", "content": said("dog")})
        if shape == "headers" and rng.random() < 0.3:
            messages.append({"role": "tool", "content": said()})
    if rng.random() < 0.2 and shape not in STRICT:
        messages.append({"role": "user", "content": said()})
    return messages


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_and_what_is_learnt_are_those_of_transformers_with_and_without_tags(tmp_path, shape):
    told = write_chat_tokenizer(tmp_path / "told", tagged(shape))
    silent = write_chat_tokenizer(tmp_path / "silent", untagged(shape))
    oracle = AutoTokenizer.from_pretrained(told)
    rng = random.Random(shape)
    conversations = [conversation(rng, shape) for _ in range(40)]
    made = [samples(folder, *conversations) for folder in (told, silent)]
    for messages, *both in zip(conversations, *made, strict=True):
        expected = oracle.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        for sample in both:
            assert list(sample.ids) == expected["input_ids"], messages
            assert learnt(sample) == [0, *expected["assistant_masks"][1:]], messages
            assert sample.cut == 0


def test_smollm2s_own_template_learns_the_assistants_words_and_their_end(tmp_path):
    folder = write_chat_tokenizer(tmp_path / "model", SMOLLM2)
    twin = write_chat_tokenizer(tmp_path / "twin", tagged("chatml"))
    messages = [
        {"role": "user", "content": "What is\n2 + 2?"},
        {"role": "assistant", "content": " Four. "},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes"},
    ]
    (sample,) = samples(folder, messages)
    ids, mask = reference(twin, messages)
    assert (
        list(sample.ids)
        == ids
        == AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, tokenize=True, return_dict=False
        )
    )
    assert learnt(sample) == mask
    words = load_tokenizer(folder).backend.decode(
        [token for token, counts in zip(ids, mask, strict=True) if counts],
        skip_special_tokens=False,
    )
    assert words == " Four. <|im_end|>Yes<|im_end|>"


def test_a_start_token_stands_where_the_template_writes_it_and_not_twice(tmp_path):
    folder = write_chat_tokenizer(tmp_path / "model", untagged("headers"))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    start = load_tokenizer(folder).bos_id
    (sample,) = samples(folder, said)
    assert load_tokenizer(folder).opening == (start,)
    assert sample.ids.count(start) == 1 and sample.ids[0] == start
    (chatml,) = samples(write_chat_tokenizer(tmp_path / "chatml", SMOLLM2), said)
    assert start not in chatml.ids


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_conversation_loses_tokens_and_their_mask_alike(tmp_path, side):
    """transformers' own mask of what is cut on the left is of zeros from there on."""
    folder = write_chat_tokenizer(tmp_path / "model", untagged("chatml"), truncation_side=side)
    twin = write_chat_tokenizer(tmp_path / "twin", tagged("chatml"))
    turns = [("user", "the dog " * 9), ("assistant", "over the lazy dog " * 5)] * 2
    messages = [{"role": role, "content": content} for role, content in turns]
    ids, mask = reference(twin, messages)
    for longest in (2, 5, len(ids) // 2, len(ids) - 1, len(ids), len(ids) + 9):
        kept = slice(None, longest) if side == "right" else slice(max(0, len(ids) - longest), None)
        cut = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, tokenize=True, return_dict=False, truncation=True, max_length=longest
        )
        assert cut == ids[kept]
        if not any(mask[kept][1:]):
            with pytest.raises(FedloraError, match="no record has a token to predict"):
                samples(folder, messages, max_length=longest)
            continue
        (sample,) = samples(folder, messages, max_length=longest)
        assert list(sample.ids) == ids[kept]
        assert learnt(sample) == [0, *mask[kept][1:]]
        assert sample.cut == max(0, len(ids) - longest)


def test_all_tokens_of_a_last_character_are_learnt(tmp_path):
    """transformers marks the first of them alone, as all have the character's place."""
    for make in (tagged, untagged):
        folder = write_chat_tokenizer(tmp_path / make.__name__, make("no token at the end"))
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ok 🤗"}]
        (sample,) = samples(folder, said)
        counted = [n for n, counts in zip(sample.ids, learnt(sample), strict=True) if counts]
        assert load_tokenizer(folder).backend.decode(counted) == "ok 🤗"


def test_keys_without_a_value_are_as_if_they_were_not_there(tmp_path):
    template = (
        "{% for m in messages %}{{ m.role + (' ' + m.name if 'name' in m else '') + "
        "(' tools' if m.tool_calls is defined else '') + ': ' + m.content + '<|im_end|>' }}"
        "{% endfor %}"
    )
    folder = write_chat_tokenizer(tmp_path / "model", template)
    messages = [
        {"role": "user", "content": "Hi", "name": "Ann", "tool_calls": None},
        {"role": "assistant", "content": "Ho", "name": None, "tool_calls": None},
    ]
    (sample,) = samples(folder, messages)
    assert load_tokenizer(folder).backend.decode(list(sample.ids), skip_special_tokens=False) == (
        "user Ann: Hi<|im_end|>assistant: Ho<|im_end|>"
    )
    assert list(sample.ids) == AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=True, return_dict=False
    )


def test_a_saved_dataset_of_conversations_is_read_as_the_file_it_came_from(tmp_path):
    folder = write_chat_tokenizer(tmp_path / "model", SMOLLM2)
    rows = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "name": "B"}],
        [{"role": "user", "content": "He"}, {"role": "assistant", "content": "Ha"}],
    ]
    datasets.Dataset.from_list([{"messages": row, "n": 1} for row in rows]).save_to_disk(
        tmp_path / "saved"
    )
    data = DataConfig(train=str(tmp_path / "saved"), messages="messages")
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=1000))
    tokenizer = load_tokenizer(folder)
    saved = task.samples(load_records(data, "train"), tokenizer, data)
    assert [s.ids for s in saved] == [s.ids for s in samples(folder, *rows)]


def test_templates_are_found_where_transformers_finds_them(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    cases: list[tuple[Any, dict[str, str]]] = [
        ("C", {}),
        ("C", {"chat_template.jinja": "J"}),
        (named, {}),
        (named, {"chat_template.jinja": "J"}),
        ("C", {"additional_chat_templates/rag.jinja": "R"}),
        (None, {"chat_template.jinja": "J", "additional_chat_templates/default.jinja": "A"}),
        (None, {"chat_template.json": '{"chat_template": "P"}'}),
        (None, {}),
    ]
    for number, (setting, files) in enumerate(cases):
        folder = write_chat_tokenizer(tmp_path / str(number), setting)
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        found = AutoTokenizer.from_pretrained(folder).chat_template
        if isinstance(found, str):
            found = {"default": found}
        ours = load_tokenizer(folder).chat
        assert dict(ours.templates) == (found or {})
        oracle = AutoTokenizer.from_pretrained(folder).special_tokens_map
        assert dict(ours.tokens) == oracle


@pytest.mark.parametrize("chat", ["auto", "yes", "no"])
@pytest.mark.parametrize("template", [SMOLLM2, None])
def test_prompt_and_completion_are_two_turns_or_one_text(tmp_path, template, chat):
    folder = write_chat_tokenizer(tmp_path / "model", template)
    path = folder / "records.csv"
    path.write_text("question,answer\nWho is it?,The dog\n")
    data = DataConfig(train=str(path), prompt="question", completion="answer", chat=chat)
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=1000))
    tokenizer = load_tokenizer(folder)
    if chat == "yes" and template is None:
        with pytest.raises(FedloraError, match="has no chat template"):
            task.samples(load_records(data, "train"), tokenizer, data)
        return
    (sample,) = task.samples(load_records(data, "train"), tokenizer, data)
    if template is None or chat == "no":  # as text with a separator: one text, its end learnt
        text = "Who is it?The dog"
        oracle = AutoTokenizer.from_pretrained(folder)(text, return_offsets_mapping=True)
        assert list(sample.ids) == [*oracle["input_ids"], tokenizer.eos_id]
        places = oracle["offset_mapping"]
        assert learnt(sample) == [*(int(stop > len("Who is it?")) for _, stop in places), 1]
    else:
        turns = [("user", "Who is it?"), ("assistant", "The dog")]
        messages = [{"role": role, "content": content} for role, content in turns]
        (expected,) = samples(folder, messages)
        assert (sample.ids, sample.target) == (expected.ids, expected.target)


def test_another_template_is_another_tokenizer_to_the_handshake_of_language_models(tmp_path):
    one, other = (
        load_tokenizer(write_chat_tokenizer(tmp_path / name, template))
        for name, template in (("one", SMOLLM2), ("other", SMOLLM2 + " "))
    )
    assert one.digest_for(pooled=False) != other.digest_for(pooled=False)
    assert one.digest_for(pooled=True) == other.digest_for(pooled=True) == one.digest
