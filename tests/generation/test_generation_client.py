"""What a device decides: tokens, drafts, text, and what it writes down."""

from __future__ import annotations

import json
import stat

import pytest

from clients.generation import DraftHistory, DraftPace, Drafts, Sampling
from clients.generation.drafts import Lookup
from clients.generation.text_stream import TextStream
from fedlora.commands.serving.run_package import RunPackage, read_package
from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.split import RUN_SCENARIO


def letters(ids: list[int]) -> str:
    """Decode bytes as a byte-level tokenizer does."""
    return bytes(ids).decode(errors="replace")


def shown(text: str, *stops: str) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(letters, stops), []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    pieces.append(stream.rest())
    return pieces, stream


def test_only_whole_characters_are_shown_and_none_is_lost():
    pieces, stream = shown("naïve 🙂 fin")
    assert "".join(pieces) == "naïve 🙂 fin" == stream.text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one. two. end", (". t",), "one"),
        ("aab aaab", ("aaa",), "aab "),
        ("abcabd", ("abd", "zz"), "abc"),
        ("abcab", ("abd",), "abcab"),
        ("xEND", ("END", "ND"), "x"),
    ],
)
def test_nothing_of_a_stop_string_is_ever_shown(text, stops, expected):
    pieces, stream = shown(text, *stops)
    assert "".join(pieces) == expected
    assert stream.stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"top_k": -1, "temperature": 1.0}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"top_p": 0.5, "seed": 1}, "top_p 0.5 and seed 1 would change nothing"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(options, match):
    with pytest.raises(FedloraError, match=match):
        Sampling(**options)


def test_a_stop_string_without_characters_is_refused():
    with pytest.raises(FedloraError, match="a stop string is empty"):
        TextStream(letters, [""])


def test_a_look_up_gives_what_followed_the_longest_run_last():
    drafts = Drafts([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3])
    assert drafts.propose(3) == [4, 9, 2]  # after 1 2 3, not after 2 3
    drafts.add(7)
    assert drafts.propose(2) == [1, 2]
    drafts.add(50)
    assert drafts.propose(4) == []
    assert Drafts([5]).propose(4) == []
    lookup = Lookup()
    lookup.add([1, 1, 1])
    assert lookup.after((1, 1), 5) == [1]


def test_a_history_is_bounded_private_and_goes_on_from_its_file(tmp_path):
    path = tmp_path / "drafts" / "history.json"
    history = DraftHistory(path, "digest", most_tokens=40)
    for start in range(0, 100, 10):
        history.add(range(start, start + 10))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = [token for ids in json.loads(path.read_text())["texts"] for token in ids]
    assert len(kept) <= 40
    assert kept[-10:] == list(range(90, 100))
    again = DraftHistory(path, "digest", most_tokens=40)
    assert Drafts([3, 91, 92], again).propose(3) == [93, 94, 95]
    assert Drafts([3, 98, 99], again).propose(3) == []  # where a text ended
    assert Drafts([3, 1, 2], again).propose(3) == []  # forgotten
    with pytest.raises(FedloraError, match="tokens of another tokenizer"):
        DraftHistory(path, "other")
    path.write_text('{"tokenizer": "digest", "texts": [["a"]]}')
    with pytest.raises(FedloraError, match="is no history of drafts"):
        DraftHistory(path, "digest")


def expected_rate(pace: DraftPace, right: float, plain_s: float, more_s: float) -> float:
    """Let a pace see exchanges of a known kind; return tokens a second beside those without."""
    spent = brought = 0.0
    credit = 0.0
    for _ in range(600):
        k = pace.length()
        accepted = 0
        while accepted < k:
            credit += right
            if credit < 1:
                break
            credit -= 1
            accepted += 1
        seconds = plain_s + k * more_s
        pace.note(k, accepted, seconds)
        spent, brought = spent + seconds, brought + accepted + 1
    return brought / spent * plain_s


def test_drafts_are_as_long_as_they_pay_and_none_where_they_do_not():
    far = DraftPace(8)
    assert expected_rate(far, 0.7, 0.05, 0.0005) > 2.0
    assert far.length() >= 4
    near = DraftPace(8)
    assert expected_rate(near, 0.05, 0.01, 0.01) > 0.97
    assert near.length() <= 1
    assert DraftPace(0).length() == 0


def test_whoever_makes_a_package_brings_no_code_onto_the_device(tmp_path):
    RunPackage(Scenario(), "v", None).write(tmp_path)
    theirs = Scenario(python_path=str(tmp_path))
    (tmp_path / RUN_SCENARIO).write_text(scenario_to_toml(theirs))
    assert read_package(tmp_path).scenario == Scenario()
