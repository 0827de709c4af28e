"""Sessions keep their bounds and their owners, and refuse in one sentence what they cannot hold."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
import torch
from support.generation import Generation, another, written
from support.patience import patient

from clients.generation import Sampler, Sampling
from clients.owner import OwnerTerms, Private
from fedlora.config import NodeKeys
from fedlora.errors import FedloraError
from fedlora.generation.bounds import CacheBounds, GenerationRefused
from fedlora.generation.pages import RowPages
from fedlora.generation.sessions import Sessions
from fedlora.link import Frame, messages as m

GREEDY = Sampling()
PROMPT = [5, 9, 33, 7, 61, 12, 80, 44, 3, 21]


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Generation:
    bounds = CacheBounds(tokens_in_all=160, tokens_per_client=64, page_tokens=16)
    folder = tmp_path_factory.mktemp("gpt2")
    return Generation(folder, "gpt2", (4, 1, 2), bounds=bounds)


def test_a_row_holds_little_more_than_its_tokens_however_it_grows_and_shrinks():
    row, rng, held = RowPages(16), random.Random(2), []
    expected = torch.empty(1, 2, 0, 3)
    for _ in range(200):
        if row.length > 100 or (row.length and rng.random() < 0.4):
            length = rng.randrange(row.length + 1)
            row.crop(length)
            expected = expected[:, :, :length]
        else:
            new = torch.randn(1, 2, rng.randint(1, 40), 3)
            keys, values = row.append(7, torch.stack((new, 2 * new)))
            row.commit(new.shape[2])
            expected = torch.cat([expected, new], 2)
            assert torch.equal(keys, expected)
            assert torch.equal(values, 2 * expected)
        held.append((row.held_tokens, row.length))
    assert all(tokens <= 1.1 * length + 16 for tokens, length in held)
    assert row.held_bytes == 2 * 2 * row.held_tokens * 3 * 4


def test_bounds_of_clients_and_of_all_are_kept_and_told():
    sessions = Sessions(CacheBounds(100, 60, sessions_per_client=2, page_tokens=10))
    own = sessions.open("a", "v", (1,))
    sessions.begin(own.name, "a", "v", 0, 41)
    assert sessions.granted_tokens == 50
    other = sessions.open("a", "v", (1,))
    with pytest.raises(GenerationRefused, match="client 'a' would hold 70 tokens, of 60"):
        sessions.begin(other.name, "a", "v", 0, 11)
    with pytest.raises(GenerationRefused, match="client 'a' has 2 sessions open, of 2"):
        sessions.open("a", "v", (1,))
    third = sessions.open("b", "v", (1,))
    with pytest.raises(GenerationRefused, match="all sessions would hold 110 tokens, of 100"):
        sessions.begin(third.name, "b", "v", 0, 60)
    assert sessions.granted_tokens == 50
    with pytest.raises(GenerationRefused, match="asked twice at once"):
        sessions.begin(own.name, "a", "v", 0, 1)


def test_a_session_that_is_closed_while_it_is_computed_counts_until_that_has_ended():
    """Or a client that breaks its streams off would hold any number of tokens."""
    sessions = Sessions(CacheBounds(100, 60, sessions_per_client=1, page_tokens=10))
    first = sessions.begin(sessions.open("a", "v", ()).name, "a", "v", 0, 60)
    sessions.close(first.name, "a")
    assert (len(sessions), sessions.granted_tokens, first.over) == (1, 60, True)
    with pytest.raises(GenerationRefused, match="has no session") as refused:
        sessions.begin(first.name, "a", "v", 0, 1)
    assert refused.value.refusal == "gone"
    found = []

    def again() -> None:
        found.append(sessions.begin(sessions.open("a", "v", ()).name, "a", "v", 0, 60))

    waits = threading.Thread(target=again)  # as a device whose link broke, which is not refused
    waits.start()
    sessions.end(first)
    waits.join(patient(10))
    assert len(found) == len(sessions) == 1 and sessions.granted_tokens == 60
    assert found[0] is not first


def test_who_has_too_much_itself_is_refused_at_once_whatever_others_leave_behind(monkeypatch):
    sessions = Sessions(CacheBounds(100, 60, sessions_per_client=1, page_tokens=10))
    gone = sessions.begin(sessions.open("a", "v", ()).name, "a", "v", 0, 30)
    sessions.close(gone.name, "a")
    own = sessions.open("b", "v", ())
    monkeypatch.setattr(sessions._lock, "wait", lambda _: pytest.fail("it waits"))
    with pytest.raises(GenerationRefused, match="client 'b' would hold 70 tokens, of 60"):
        sessions.begin(own.name, "b", "v", 0, 61)
    with pytest.raises(GenerationRefused, match="client 'b' has 1 sessions open, of 1"):
        sessions.open("b", "v", ())


def test_a_session_that_nobody_uses_is_evicted_and_says_so():
    now = [0.0]
    sessions = Sessions(CacheBounds(idle_s=60), clock=lambda: now[0])
    old, used = sessions.open("a", "v", ()), sessions.open("b", "v", ())
    now[0] = 50.0
    sessions.end(sessions.begin(used.name, "b", "v", 0, 1))
    now[0] = 61.0
    sessions.open("c", "v", ())
    assert len(sessions) == 2
    with pytest.raises(GenerationRefused, match="or not used for 60 s; open another") as refused:
        sessions.begin(old.name, "a", "v", 0, 1)
    assert refused.value.refusal == "gone"


def test_nobody_reaches_what_another_client_or_an_older_adapter_left(split):
    mine = split.row("0")
    mine.open()
    ends = split.text_ends()
    mine.extend(0, Private(ends.embed(PROMPT, 0)), 1)
    stranger = split.row("1")
    stranger.open()
    own, stranger._session = stranger._session, mine._session
    for position in (0, 5):
        with pytest.raises(GenerationRefused, match="client '1' has no session"):
            stranger.extend(position, Private(ends.embed(PROMPT, 0)), 1)
    before = split.engine.version
    split.engine.load(another(split.adapter, split.engine, split.folder))
    with pytest.raises(GenerationRefused, match=f"computed with adapter {before[:12]}"):
        mine.extend(len(PROMPT), Private(ends.embed([4], 0)), 1)
    split.engine.load(split.adapter)
    stranger._session = own
    for row in (mine, stranger):
        row.close()


def test_what_others_left_behind_changes_no_text(split):
    """Ranks and adapters that ran before, in pages that are used again, leave no trace."""
    expected = [written(split.unsplit(client), PROMPT, 8) for client in "012"]
    assert len({tuple(tokens) for tokens in expected}) == 3
    for client in (0, 1, 2, 1, 0):
        writer = split.writer(str(client))
        assert list(writer.tokens(PROMPT, Sampler(GREEDY), 8)) == expected[client]
        writer.close()
    assert len(split.server.sessions) == 0


def test_an_evicted_session_is_replayed_in_the_middle_of_a_text(split):
    writer = split.writer()
    found = []
    for number, token in enumerate(writer.tokens(PROMPT, Sampler(GREEDY), 12)):
        found.append(token)
        if number in (3, 7):
            split.server.sessions._open.clear()
    assert found == written(split.unsplit(), PROMPT, 12)
    writer.close()


def test_more_clients_than_fit_are_refused_and_the_others_write_on(split):
    """Whoever is refused tries again when others have ended."""
    ranks = dict(split.server._ranks)
    split.server._ranks.update({str(n): split.server._ranks[str(n % 3)] for n in range(8)})
    found, refused = {}, []

    def write(number: int) -> None:
        while True:
            writer = split.writer(str(number))
            try:
                found[number] = list(writer.tokens(PROMPT, Sampler(GREEDY), 9))
                writer.close()
                return
            except GenerationRefused as error:
                refused.append(str(error))
                writer.close()
                time.sleep(0.02)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    split.server._ranks = ranks
    for number in range(8):
        assert found[number] == found[number % 3]
    assert all("tokens, of 160; try again" in sentence for sentence in refused)
    assert split.server.sessions.granted_tokens == 0


def hostile(rng: random.Random, session: str, width: int) -> Frame:
    """Return a request that is wrong in one way or more."""
    odd: list[Any] = [-1, 0, 1, 2, 3.5, True, None, "x", "", [], {}, 1 << 70, 10**9, session]
    good = {"session": session, "position": 0, "tokens": 2, "last": 1, "block": 1}
    kinds = [m.GEN_EXTEND] * 6 + [m.GEN_EARLY] * 3 + [m.GEN_REST] * 3
    kind = rng.choice([*kinds, m.GEN_OPEN, m.GEN_CLOSE, m.GEN_STATES, m.STEP, ""])
    if kind == m.GEN_EXTEND:
        del good["block"]
    elif kind == m.GEN_REST:
        good = {"session": session, "last": 1}
    fields = {k: v for k, v in good.items() if rng.random() > 0.1}
    for name in rng.sample(sorted(good), rng.randint(0, min(3, len(good)))):
        fields[name] = rng.choice(odd)
    shape = rng.choice([(2, width), (1, width), (2, width + 1), (2,), (0, width), (2, 1, width)])
    value = rng.choice([0.0, float("nan"), float("inf"), -1e38])
    dtype = rng.choice([torch.float32, torch.float16, torch.int8, torch.int64])
    full = torch.full(shape, 0 if dtype in (torch.int8, torch.int64) else value).to(dtype)
    tensors = {rng.choice(["activation", "activation.int8", "x"]): full}
    client = rng.choice(["1", "1", "9", "0 ", ""])
    if rng.random() < 0.1:
        fields["more"] = 1
    return Frame(kind, client, rng.randrange(9), fields, tensors if rng.random() < 0.8 else {})


def test_a_thousand_hostile_requests_change_nobodys_text(split):
    writer, rng = split.writer(), random.Random(7)
    tokens = writer.tokens(PROMPT, Sampler(GREEDY), 20)
    found = [next(tokens)]
    victim, kinds = writer.row._session, set()
    for number in range(1000):
        answer = split.server.carry(hostile(rng, victim, split.engine.geometry.activation_width))
        kinds.add(answer.kind)
        if answer.kind == m.GEN_REFUSED:
            assert len(answer.fields["reason"]) < 400
            assert "\n" not in answer.fields["reason"]
        if number % 50 == 0:
            found.extend([token for token in [next(tokens, None)] if token is not None])
    assert [*found, *tokens] == written(split.unsplit(), PROMPT, 20)
    assert m.GEN_STATES not in kinds
    assert m.GEN_REFUSED in kinds
    writer.close()


def test_more_tokens_than_a_client_may_hold_are_refused_before_they_are_read(split):
    """A codec may make many numbers of few bytes, with no session there to hold them."""
    fields = {"session": "none", "position": 0, "tokens": 65, "last": 1}
    request = Frame(m.GEN_EXTEND, "1", 0, fields, {"activation.x": torch.zeros(1)})
    answer = split.server.carry(request)
    assert (answer.kind, answer.fields["refusal"]) == (m.GEN_REFUSED, "full")
    assert "sends 65 tokens, and may hold 64" in answer.fields["reason"]


def test_numbers_that_overflow_the_blocks_are_refused_and_forgotten(split):
    row = split.row("1")
    row.open()
    fields = {"session": row._session, "position": 0, "tokens": 3, "last": 1}
    huge = torch.full((3, split.engine.geometry.activation_width), 3e38)
    huge[:, ::2] *= -1
    answer = split.server.carry(Frame(m.GEN_EXTEND, "1", 1, fields, {"activation": huge}))
    if answer.kind == m.GEN_REFUSED:
        assert "NaN or infinity" in answer.fields["reason"]
        assert split.server.sessions._open[row._session].pages.length == 0
    row.close()


def test_a_server_of_another_checkpoint_or_adapter_is_not_used(split):
    row = split.row()
    row.adapter = "0" * 64
    with pytest.raises(GenerationRefused, match="adapter is '0000"):
        row.open()
    row = split.row("7")
    with pytest.raises(GenerationRefused, match="client '7' took no part in the run"):
        row.open()
    row = split.row()
    object.__setattr__(row, "_identity", split.identity.__class__(2, "a", "b", "c", "fp32"))
    with pytest.raises(GenerationRefused, match="config_digest is a"):
        row.open()


def test_an_owner_with_a_limit_generates_only_where_the_key_says_so(split):
    keys = {"data": "own.csv", "text": "text", "model": "package", "privacy-epsilon": 1}
    strict = OwnerTerms.of(NodeKeys.read(keys))
    with pytest.raises(FedloraError, match="generate-allowed of the node configuration"):
        list(split.writer(terms=strict).tokens(PROMPT, Sampler(GREEDY), 2))
    assert all(s.pages.length == 0 for s in split.server.sessions._open.values())
    for allowed in (
        OwnerTerms.of(NodeKeys.read({**keys, "generate-allowed": "true"})),
        OwnerTerms.of(NodeKeys.read({"data": "own.csv", "text": "text"})),
    ):
        writer = split.writer(terms=allowed)
        found = list(writer.tokens(PROMPT, Sampler(GREEDY), 4))
        assert found == written(split.unsplit(), PROMPT, 4)
        writer.close()


def test_a_conversation_goes_on_after_its_session_was_evicted_or_a_request_refused(split):
    writer, other = split.writer(), [7, 8, *PROMPT]
    assert list(writer.tokens(PROMPT, Sampler(GREEDY), 3)) == written(split.unsplit(), PROMPT, 3)
    split.server.sessions._open.clear()
    assert list(writer.tokens(other, Sampler(GREEDY), 3)) == written(split.unsplit(), other, 3)
    long = [*PROMPT[:4], *([5] * 60)]
    with pytest.raises(GenerationRefused, match="would hold 80 tokens, of 64"):
        list(writer.tokens(long, Sampler(GREEDY), 3))
    assert list(writer.tokens(PROMPT, Sampler(GREEDY), 3)) == written(split.unsplit(), PROMPT, 3)
    writer.close()
