"""The ``openai`` package and raw requests, through a real server on loopback."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from support.chat_folders import SMOLLM2, write_chat_model
from support.generation import Generation, written
from support.patience import patient
from support.served import served
from transformers import AutoTokenizer

from clients.gateway.command import listening, server_of
from clients.generation import ServerConnection, Writer
from fedlora.commands.prompts import chat_ids
from fedlora.errors import FedloraError
from fedlora.tasks import load_tokenizer
from fedlora.tasks.chat.template import ChatTemplates

KEY, NAME, AT_ONCE = "a-key-of-the-test", "house", 4
SAID = ["dog 1?", "the café", "put out the lamp", "a fox"]


class Model:
    """A tiny split model with a random adapter, as a device has it."""

    def __init__(self, folder: Any) -> None:
        self.folder = write_chat_model(folder, SMOLLM2)
        self.generation = Generation(self.folder, "", [3])
        self.tokenizer = load_tokenizer(self.folder)

    def prompt(self, text: str) -> list[int]:
        return [*self.tokenizer.opening, *self.tokenizer.encode(text, 1 << 20, special=False)]

    def conversation(self, messages: Sequence[Any]) -> list[int]:
        return chat_ids(self.tokenizer, messages)

    def new_writer(self) -> Writer:
        return self.generation.writer("0", longest_draft=4, ends=(self.tokenizer.eos_id,))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(tmp_path_factory.mktemp("gateway") / "model")


@contextmanager
def answering(model: Any) -> Iterator[int]:
    """Let a gateway answer on a port until the context ends."""
    with listening(0) as listener:
        server = server_of(model, NAME, AT_ONCE, KEY)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(patient(10))
    assert not thread.is_alive()


def library(port: int) -> openai.OpenAI:
    """Return the library's client of a port."""
    place = f"http://127.0.0.1:{port}/v1"
    return openai.OpenAI(base_url=place, api_key=KEY, max_retries=0, timeout=patient(30))


@pytest.fixture(scope="module")
def port(model):
    with answering(model) as port:
        yield port
    model.generation.server.end()


@pytest.fixture(scope="module")
def client(port):
    with library(port) as client:
        yield client


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def unsplit(model: Model, messages: list[dict[str, str]], most: int) -> str:
    """Return what transformers and PEFT answer, undivided."""
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    out = written(model.generation.unsplit("0"), ids, most, eos_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(out, skip_special_tokens=True))


def ask(port: int, body: Any = None, path: str = "/v1/models", **headers: str) -> tuple[int, Any]:
    """Send a request as it is; return status and content."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(30))
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {KEY}", **{k.title(): v for k, v in headers.items()}}
    connection.request("GET" if data is None else "POST", path, data, sent)
    answer = connection.getresponse()
    status, content = answer.status, json.loads(answer.read())
    connection.close()
    return status, content


def test_openai_streams_a_chat_that_is_the_undivided_models(model, client):
    expected = unsplit(model, turn(SAID[0]), 24)
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=turn(SAID[0]),
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 4
    assert chunks[-2].choices[0].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage.completion_tokens == 24
    assert usage.prompt_tokens == len(model.conversation(turn(SAID[0])))
    whole = client.chat.completions.create(
        model=NAME, messages=turn(SAID[0]), temperature=0, max_tokens=24
    )
    assert whole.choices[0].message.content == expected
    assert whole.usage == usage


def test_many_at_once_share_forwards_and_get_each_its_own_text(model, client):
    expected = [unsplit(model, turn(text), 20) for text in SAID]
    scheduler = model.generation.server.scheduler
    before = scheduler.forwards

    def answer(text: str) -> str:
        made = client.chat.completions.create(
            model=NAME, messages=turn(text), temperature=0, max_tokens=20
        )
        return made.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:  # three times as many as are written at once
        assert list(pool.map(answer, SAID * 3)) == expected * 3
    assert scheduler.forwards - before < 12 * 20
    assert len(model.generation.server.sessions) <= AT_ONCE


def test_a_turn_that_goes_on_sends_what_is_new_alone(model, client, monkeypatch):
    scheduler, sent = model.generation.server.scheduler, []
    submit = scheduler.submit

    def counting(session, activation, last, **options):
        sent.append(len(activation))
        return submit(session, activation, last, **options)

    monkeypatch.setattr(scheduler, "submit", counting)
    first = unsplit(model, turn("where is the fox?"), 8)
    messages = [*turn("where is the fox?"), {"role": "assistant", "content": first}]
    for said in (turn("where is the fox?"), turn(SAID[2]), [*messages, *turn("go on")]):
        sent.clear()
        made = client.chat.completions.create(
            model=NAME, messages=said, temperature=0, max_tokens=8
        )
        assert made.choices[0].message.content == unsplit(model, said, 8)
    ids, before = (model.conversation(said) for said in ([*messages, *turn("go on")], messages[:1]))
    assert sent[0] <= len(ids) - len(before)  # another conversation came between


def test_a_seed_a_stop_and_a_completion_do_what_they_say(model, client):
    drawn = [
        client.completions.create(model=NAME, prompt="a fox", max_tokens=12, seed=7, top_p=0.9)
        for _ in range(2)
    ]
    assert drawn[0].choices[0].text == drawn[1].choices[0].text
    ids = model.prompt("a fox")
    plain = model.tokenizer.decode(written(model.generation.unsplit("0"), ids, 16))
    stopped = client.completions.create(
        model=NAME, prompt="a fox", temperature=0, seed=7, stop=plain[5:8]
    )
    assert stopped.choices[0].text == plain[: plain.index(plain[5:8])]
    assert stopped.choices[0].finish_reason == "stop"


def test_who_goes_away_gives_back_its_place(model, client):
    streams = [
        client.chat.completions.create(
            model=NAME, messages=turn(text), temperature=0, stream=True, logit_bias={}
        )
        for text in SAID
    ]
    assert len(streams) == AT_ONCE
    for stream in streams:  # all places are taken, each by a text of hundreds of tokens
        next(iter(stream))
        stream.close()
    made = client.chat.completions.create(
        model=NAME, messages=turn(SAID[0]), temperature=0, max_tokens=4
    )
    assert made.choices[0].message.content == unsplit(model, turn(SAID[0]), 4)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example:8080"}, 403, "host_not_allowed"),
        ({"host": "127.0.0.1.evil.example"}, 403, "host_not_allowed"),
        ({"host": "127.0.0.1@evil.example"}, 403, "host_not_allowed"),
        ({"host": ""}, 403, "host_not_allowed"),
        ({"origin": "http://evil.example"}, 403, "origin_not_allowed"),
        ({"origin": "null"}, 403, "origin_not_allowed"),
        ({"origin": "http://127.0.0.1:8080"}, 403, "origin_not_allowed"),
        ({"authorization": "Bearer another"}, 401, "invalid_api_key"),
        ({"authorization": KEY}, 401, "invalid_api_key"),
        ({"authorization": ""}, 401, "invalid_api_key"),
        ({"host": "localhost:9"}, 200, None),
        ({"host": "[::1]:9"}, 200, None),
    ],
)
def test_web_pages_and_strangers_are_refused(port, headers, status, code):
    found, content = ask(port, **headers)
    assert found == status
    assert content.get("error", {}).get("code") == code


CHAT = {"model": NAME, "messages": turn("dog"), "temperature": 0, "max_tokens": 2}


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"typical_p": 0.5}, "typical_p", "the field 'typical_p' is unknown"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "is unknown"),
        ({"stream_options": {}, "n": 2}, "n", "n is 2"),
        ({"n": True}, "n", "n is True"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is"),
        ({"response_format": {"type": "json_object"}}, "response_format", "json_object"),
        ({"temperature": 2.5}, "temperature", "2.5"),
        ({"temperature": "hot"}, "temperature", "hot"),
        ({"top_p": 0}, "top_p", "top_p is 0"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 1.5, "temperature": 1}, "seed", "1.5"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"max_completion_tokens": 4}, "max_tokens", "mean the same"),
        ({"stop": ""}, "stop", "stop is ''"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"messages": []}, "messages", "without a user's turn"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "without a user's"),
        (
            {"messages": [*turn("x"), {"role": "assistant", "content": "y"}]},
            *("messages", "end with the assistant's turn"),
        ),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", "'owner'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "None"),
        ({"messages": [{**turn("x")[0], "name": "Bo"}]}, "messages[0].name", "unknown"),
        (
            {"messages": turn([{"type": "image_url", "image_url": {}}])},
            *("messages[0].content[0]", "reads texts alone"),
        ),
        ({"messages": turn("\ud800")}, "messages[0].content", "no UTF-8"),
        ({"messages": turn("dog " * 600)}, None, "the model 512 positions"),
        ({"messages": None}, "messages", "messages is missing"),
    ],
)
def test_what_is_not_honoured_is_refused_with_its_field_and_a_sentence(port, change, param, said):
    status, content = ask(port, CHAT | change, "/v1/chat/completions")
    assert status == 400
    error = content["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert said in error["message"]


def test_a_body_a_path_and_a_model_that_are_none_are_refused(port):
    for body in (b"{", b"[" * 100_000, b"[]", b'{"model": NaN}'):
        assert ask(port, body, "/v1/chat/completions")[0] == 400
    assert ask(port, b" " * (5 << 20), "/v1/chat/completions")[0] == 413
    assert ask(port, CHAT | {"model": "gpt"}, "/v1/chat/completions")[0] == 404
    assert ask(port, CHAT, "/v1/embeddings")[1]["error"]["type"] == "invalid_request_error"
    assert ask(port, {"model": NAME, "prompt": ["a", "b"]}, "/v1/completions")[0] == 400
    assert ask(port, path="/v1/models/gpt")[0] == 404
    assert ask(port)[1]["data"][0]["id"] == ask(port, path=f"/v1/models/{NAME}")[1]["id"] == NAME


def test_what_fails_in_the_gateway_is_told_without_words_and_others_go_on(
    model, port, client, monkeypatch
):
    def broken(messages: Any) -> list[int]:
        raise RuntimeError("dog 1? is private")

    monkeypatch.setattr(model, "conversation", broken)
    status, content = ask(port, CHAT, "/v1/chat/completions")
    assert status == 500
    assert "RuntimeError" in content["error"]["message"]
    assert "private" not in content["error"]["message"]
    monkeypatch.undo()
    calls = []

    def breaks_later(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        if len(ids) > 4:
            raise RuntimeError("dog 1? is private")
        return "x" * len(ids)

    monkeypatch.setattr(type(model.tokenizer), "decode", lambda self, ids: breaks_later(ids))
    with pytest.raises(openai.APIError, match="RuntimeError"):
        list(client.chat.completions.create(**CHAT | {"max_tokens": 9, "stream": True}))
    monkeypatch.undo()
    assert ask(port, CHAT, "/v1/chat/completions")[0] == 200


def test_a_model_without_a_chat_template_names_the_other_endpoint(model, port, monkeypatch):
    without = ChatTemplates(model.folder)
    monkeypatch.setattr(model, "tokenizer", replace(model.tokenizer, chat=without))
    status, content = ask(port, CHAT, "/v1/chat/completions")
    assert status == 400
    assert "ask /v1/completions" in content["error"]["message"]


def test_parts_of_a_content_and_a_message_of_the_library_are_one_text(model, client):
    made = client.chat.completions.create(**CHAT | {"messages": turn("dog 1?")})
    parts = [{"type": "text", "text": "dog "}, {"type": "text", "text": "1?"}]
    said = [{"role": "user", "content": parts}, made.choices[0].message, *turn("go on")]
    again = client.chat.completions.create(**CHAT | {"messages": said})
    plain = [*turn("dog 1?"), {"role": "assistant", "content": made.choices[0].message.content}]
    assert again.choices[0].message.content == unsplit(model, [*plain, *turn("go on")], 2)


def test_texts_of_a_server_over_tls_are_the_same_and_its_loss_is_told(model, tmp_path):
    """The gateway of a device whose server is elsewhere differs in its writers alone."""
    ways: list[ServerConnection] = []

    class Remote(Model):
        def __init__(self) -> None:
            self.tokenizer = model.tokenizer

        def new_writer(self) -> Writer:
            ways.append(there.connection("0", give_up_s=0.2))
            return there.writer(ways[-1], (self.tokenizer.eos_id,))

    def answer(text: str) -> str:
        made = client.chat.completions.create(
            model=NAME, messages=turn(text), temperature=0, max_tokens=8
        )
        return made.choices[0].message.content

    with served(model.generation, tmp_path / "certs") as there:
        with answering(Remote()) as port, library(port) as client:
            with ThreadPoolExecutor(3) as pool:
                found = list(pool.map(answer, SAID[:3]))
            assert found == [unsplit(model, turn(text), 8) for text in SAID[:3]]
            assert len(ways) == 3
            there.listener.stop(0.0)
            with pytest.raises(openai.InternalServerError) as lost:
                answer(SAID[0])
            assert lost.value.status_code == 503
            assert "given up after 0.2 s" in lost.value.message
            for way in ways:
                way.close()


def test_a_port_that_is_taken_is_refused(port):
    with pytest.raises(FedloraError, match=f"--port {port} on 127.0.0.1"):
        listening(port)
