"""Conversations that cannot be used are refused in one sentence: record, value and mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.chat_folders import SMOLLM2, tagged, untagged, write_chat_tokenizer

from fedlora.config import DataConfig, TaskConfig, scenario_from_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.tasks import RecordError, load_records, load_tokenizer
from fedlora.tasks.causal_lm import CausalLanguageModelling

GOOD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def refusal(folder: Path, *conversations: Any, good: bool = True) -> str:
    """Return what is said of conversations that stand behind a good one."""
    path = folder / "records.jsonl"
    rows = [*([GOOD] if good else []), *conversations]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    data = DataConfig(train=str(path), messages="messages")
    task = CausalLanguageModelling(TaskConfig(kind="causal_lm", max_length=1000))
    with pytest.raises(FedloraError) as caught:
        task.samples(load_records(data, "train"), load_tokenizer(folder), data)
    error = caught.value
    said = str(error.of("F", error.place) if isinstance(error, RecordError) else error)
    assert "\n" not in said
    return said.replace(str(path), "F")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return write_chat_tokenizer(tmp_path_factory.mktemp("chat") / "model", SMOLLM2)


def turn(role: Any = "user", content: Any = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, USER, ANSWER = turn("system", "Be good"), turn(), turn("assistant", "Ho")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "a conversation of 0 messages and no assistant's turn; add"),
        ([SYSTEM, USER], "a conversation of 2 messages and no assistant's turn; add"),
        ([SYSTEM, USER, SYSTEM, ANSWER], "2 system prompts, messages 1 and 3; join"),
        ([USER, turn("assistant", " \n")], "an empty turn, message 2 ('assistant') with the cont"),
        ([turn("user", ""), ANSWER], "an empty turn, message 1 ('user') with the content ''; wri"),
        ([turn("user", None), ANSWER], "an empty turn, message 1 ('user') with the content None"),
        ([{"role": "user"}, ANSWER], "an empty turn, message 1 ('user')"),
        ([turn("user", [{"type": "text", "text": "Hi"}]), ANSWER], "a list as content of message"),
        ([turn("user", {"text": "Hi"}), ANSWER], "an object as content of message 1 ('user')"),
        ([turn("user", 7), ANSWER], "a number as content of message 1 ('user'), 7; write a text"),
        ([turn(None), ANSWER], "the role None in message 1; write system, user or assistant"),
        ([turn(3), ANSWER], "the role 3 in message 1; write system, user or assistant"),
        (["Hi", ANSWER], "a text for message 1, 'Hi'; write it as an object with role and content"),
        ([None, ANSWER], "null for message 1, None; write it as an object"),
        ([USER, turn("assistant", "Ho", weight=0)], "weight 0 in message 2, and every"),
        ([turn("user", "\ud800"), ANSWER], "no UTF-8 text at '\\ud800'"),
        (
            [USER, turn("assistant", "Ho", tool_calls=[{"name": "f"}])],
            "'tool_calls' in message 2, which the chat template leaves out; take it out, or mend",
        ),
        ([USER, turn("assistant", "Ho", reasoning="Hm")], "'reasoning' in message 2, and the chat"),
    ],
)
def test_a_conversation_of_which_nothing_can_be_learnt_is_refused(smollm2, messages, said):
    told = refusal(smollm2, messages)
    assert told.startswith("record 2 of F has ") and said in told


@pytest.mark.parametrize("value", ["Hi", 7, {"role": "user"}, True, None])
def test_messages_that_are_no_list_are_refused_with_the_record_and_the_column(smollm2, value):
    said = refusal(smollm2, value)
    assert said.startswith("record 2 of F has ")
    assert "'messages'" in said
    if value is not None:
        assert (
            'where data.messages needs a list such as [{"role": "user", "content": "..."}' in said
        )


@pytest.mark.parametrize(
    ("shape", "messages", "said"),
    [
        (
            "own name for the assistant",
            [SYSTEM, USER, ANSWER],
            "the chat template refuses the conversation (System role not supported); mend or rem",
        ),
        (
            "system in the first turn",
            [USER, USER, ANSWER],
            "the chat template refuses the conversation (Conversation roles must alternate",
        ),
    ],
)
def test_roles_that_the_template_refuses_are_told_in_its_words(tmp_path, shape, messages, said):
    for make in (tagged, untagged):
        folder = write_chat_tokenizer(tmp_path / make.__name__, make(shape))
        told = refusal(folder, messages)
        assert told.startswith("record 2 of F has the roles ") and said in told


MACRO = "{% macro f() %}x{% generation %}{{ m.role }}{% endgeneration %}{% endmacro %}"
LOOP = "{% for m in messages %}{{ '[' + m.role + ']' }}BODY{{ '<|im_end|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ m.nope.no }}", "at which the chat template fails (UndefinedError: "),
        ("{{ m.content / 0 }}", "at which the chat template fails (TypeError: "),
        ("{{ m.content.__class__.__mro__ }}", "at which the chat template fails (SecurityError: "),
        ("{% if m.role == 'user' %}{{ m.content }}{% endif %}", "'assistant', whose content the "),
        ("{% if m.role != 'user' %}{{ m.content }}{% endif %}", "message 1 with the role 'user', "),
        ("{{ m.content | upper }}", "whose content the chat template leaves out"),
        ("{{ m.content[:1] }}", "whose content the chat template leaves out"),
        ("{{ m.content + m.content }}", "a content that is shown 2 times in message 2, and the"),
        ("{{ m.content | replace('H', 'J') }}", "cannot be told from the rest; put {% generation"),
        ("{{ m.content }}{{ m.content | length }}", "cannot be told from the rest; put {% gener"),
        ("{% generation %}{% endgeneration %}{{ m.content }}", "hold nothing, so that nothing wo"),
        (
            f"{MACRO}{{{{ f() }}}}{{{{ m.content }}}}",
            "whose place the generation tags of the chat template do not tell; take",
        ),
    ],
)
def test_a_template_that_fails_or_hides_what_the_assistant_says_is_refused(tmp_path, body, said):
    folder = write_chat_tokenizer(tmp_path / "model", LOOP.replace("BODY", body))
    told = refusal(folder, GOOD, good=False)
    assert told.startswith("record 1 of F has ") and said in told


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template; save it there as chat_template.jinja, or render"),
        ("{% for m in messages %}", "cannot be read (line 1: "),
        ([{"name": "rag", "template": "x"}], "has the chat templates rag and no default; save"),
        (7, "has 7 in 'chat_template', where a text is needed"),
    ],
)
def test_a_tokenizer_without_a_template_that_can_be_used_is_refused(tmp_path, template, said):
    assert said in refusal(write_chat_tokenizer(tmp_path / "model", template), GOOD)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('prompt = "q"', "data.prompt is 'q' without data.completion; name both columns"),
        ('completion = "a"', "data.completion is 'a' without data.prompt; name both columns"),
        ('messages = "m"\ntext = "t"', "data.messages 'm' and data.text 't' are set together"),
        ('messages = "m"\ntext = "text"', "messages 'm' and data.text 'text' are set together"),
        ('messages = "m"\nprompt = "q"\ncompletion = "a"', "'m' and data.prompt 'q' are set toget"),
        ('prompt = "q"\ncompletion = "q"', "are both the column 'q'; name two"),
        ('messages = "m"\nprompt_separator = "|"', "and data.prompt_separator '|' are set togeth"),
        ('messages = "m"\nchat = "no"', "data.chat is 'no', and data.messages 'm' are rendered"),
    ],
)
def test_columns_that_contradict_each_other_are_refused_when_they_are_read(keys, said):
    with pytest.raises(FedloraError) as caught:
        scenario_from_toml(f"[data]\n{keys}\n")
    assert said in str(caught.value)
    with pytest.raises(FedloraError) as caught:
        assigned = [f"data.{line.replace(' = ', '=')}" for line in keys.splitlines()]
        with_overrides(find_scenario("quickstart"), assigned)
    assert said in str(caught.value)


@pytest.mark.parametrize("row", [{"q": "Hi"}, {"q": "Hi", "a": None}, {"q": "Hi", "a": ""}])
def test_a_prompt_without_a_completion_is_refused_with_its_record(tmp_path, row):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"q": "Hi", "a": "Ho"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(FedloraError) as caught:
        load_records(DataConfig(train=str(path), prompt="q", completion="a"), "train")
    assert str(caught.value).startswith(f"record 2 of {path} has no 'a' (")
