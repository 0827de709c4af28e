"""Tokens that leave early are those that the rule gives on the unsplit model, whatever happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from support.generation import Generation, written

from clients.generation import Drafts, LeaveEarly, Sampler, Sampling
from clients.owner import Private
from fedlora.errors import FedloraError
from fedlora.generation.bounds import GenerationRefused
from fedlora.generation.early_rows import EarlyRow
from fedlora.generation.engine import GenerationEngine, NewTokens, WaitingTokens
from fedlora.link import Frame, messages as m

AFTER = 2
GREEDY = Sampling()
PROMPTS = [
    [5, 9, 33, 7, 61, 12, 80, 44, 3, 21] * 3,
    [7, 8, 9, 7, 8, 9, 7],
    [50, 4],
    [11, 90, 2, 60],
]


@pytest.fixture(scope="module", params=[("llama", False), ("gpt2", True)], ids=lambda p: p[0])
def split(request, tmp_path_factory) -> Generation:
    """Four clients of ranks 4, 1, 0 and 2; tokens may leave after two of four blocks."""
    kind, norm = request.param
    folder = tmp_path_factory.mktemp(kind)
    told = ("model.server_norm=true",) if norm else ()
    return Generation(folder, kind, (4, 1, 0, 2), *told, chunk_tokens=20, leave_after=AFTER)


class Oracle:
    """The rule on Hugging Face's whole model, which computes all blocks of all tokens anew."""

    def __init__(self, split: Generation, client: str) -> None:
        model = split.unsplit(client)
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        base = self.model.base_model
        self.norm = base.norm if hasattr(base, "norm") else base.ln_f
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def scores(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the next token after two blocks, and after all."""
        key = tuple(ids)
        if key not in self.known:
            found = self.model(input_ids=torch.tensor([key]), output_hidden_states=True)
            early = self.model.lm_head(self.norm(found.hidden_states[AFTER][0, -1]))
            self.known[key] = early, found.logits[0, -1]
        return self.known[key]

    def write(
        self, prompt: Sequence[int], most: int, at: float, sampling: Sampling = GREEDY
    ) -> tuple[list[int], int]:
        """Return the text, and how many of its tokens left early."""
        ids, early, sampler = list(prompt), 0, Sampler(sampling)
        for _ in range(most):
            first, last = self.scores(ids)
            sure = float(first.softmax(-1).max()) >= at
            early += sure
            ids.append(sampler.pick(ids, first if sure else last))
        return ids[len(prompt) :], early


@cache
def oracle_of(split: Generation, client: str) -> Oracle:
    """Return a client's, which remembers what it has computed."""
    return Oracle(split, client)


def middle(oracle: Oracle, prompt: Sequence[int]) -> float:
    """Return a threshold that about half of a text's tokens reach, far from each of them."""
    ids = [*prompt, *oracle.write(prompt, 16, 2.0)[0]]
    places = range(len(prompt), len(ids))
    sure = sorted(float(oracle.scores(ids[:n])[0].softmax(-1).max()) for n in places)
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(sure[4:13])]
    return max(gaps)[1]


def test_clients_that_leave_early_and_those_that_do_not_share_batches(split):
    oracles = {number: oracle_of(split, str(number)) for number in range(4)}
    at = {number: middle(oracles[number], PROMPTS[number]) for number in (0, 1, 3)}
    found: dict[int, list[int]] = {}
    early: dict[int, int] = {}

    def write(number: int) -> None:
        leaving = LeaveEarly(AFTER, at[number]) if number in at else None
        drafted = number == 1
        writer = split.writer(str(number), longest_draft=4 if drafted else 0, leaving=leaving)
        writer.pace.length = lambda: 4 if drafted else 0  # type: ignore[method-assign]
        drafts = Drafts(PROMPTS[number]) if drafted else None
        found[number] = list(writer.tokens(PROMPTS[number], Sampler(GREEDY), 16, drafts))
        early[number] = writer.early
        writer.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, threshold in at.items():
        text, left = oracles[number].write(PROMPTS[number], 16, threshold)
        assert (found[number], early[number]) == (text, left), number
        assert 2 <= left <= 14
    assert found[2] == written(split.unsplit("2"), PROMPTS[2], 16)
    assert len(split.server.sessions) == 0


def test_skipped_blocks_are_filled_so_that_later_tokens_see_what_they_would_have_seen(split):
    ids, ends, row = PROMPTS[0], split.text_ends(), split.row("3")
    row.open()
    logits = []
    for begin, end, after in (
        (0, 7, AFTER),
        (7, 8, AFTER),
        (5, 9, AFTER),
        (9, 12, 0),
        (12, 30, AFTER),
    ):
        new = Private(ends.embed(ids[begin:end], begin))
        states = row.extend(begin, new, end - begin, after=after)
        if not after:
            logits.append((9, ends.logits(states, 0, 3)))
    pages = split.server.sessions._open[row._session].pages
    assert (pages.length, pages.waiting) == (30, 18)
    logits.append((18, ends.logits(row.rest(12), 0, 12)))
    assert (pages.length, pages.waiting) == (30, 0)
    row.close()
    expected = split.unsplit("3")(input_ids=torch.tensor([ids])).logits[0]
    for place, own in logits:
        assert float((own - expected[place : place + len(own)]).abs().max()) < 1e-4


def test_the_first_blocks_say_what_those_of_the_whole_model_say(split):
    ids, ends = PROMPTS[0], split.text_ends()
    row = split.engine.new_row()
    up = NewTokens(row, ends.embed(ids, 0), split.ranks["1"])
    early = ends.logits(split.engine.forward([up])[0], 0, len(ids))
    late = split.engine.finish([WaitingTokens(row, len(ids), split.ranks["1"])])[0]
    expected = oracle_of(split, "1").scores(ids)
    for own, whole in zip((early, ends.logits(late, 0, len(ids))), expected, strict=True):
        assert float((own[-1] - whole).abs().max()) < 1e-4


@pytest.mark.parametrize("lost_when", ["between the blocks", "between tokens"])
def test_a_text_that_is_told_again_goes_on_as_it_would_have(split, lost_when):
    oracle, prompt = oracle_of(split, "0"), PROMPTS[0]
    at = middle(oracle, prompt)
    sampling = Sampling(temperature=0.9, top_k=20, seed=4)
    expected, left = oracle.write(prompt, 20, at, sampling)
    writer = split.writer(longest_draft=4, leaving=LeaveEarly(AFTER, at))
    if lost_when == "between the blocks":
        rest, lost = writer.row.rest, []

        def losing(last: int) -> torch.Tensor:
            if len(lost) < 3:
                lost.append(last)
                split.server.sessions.close(writer.row._session, "0")
            return rest(last)

        writer.row.rest = losing  # type: ignore[method-assign]
    found = []
    for token in writer.tokens(prompt, Sampler(sampling), 20, Drafts(prompt)):
        found.append(token)
        if lost_when == "between tokens" and len(found) % 5 == 0:
            split.server.sessions.close(writer.row._session, "0")
    assert found == expected
    assert writer.early == left
    writer.close()


def test_a_row_holds_hidden_states_of_waiting_tokens_alone():
    row, rng = EarlyRow(8), random.Random(4)
    kept = torch.empty(0, 6)
    for _ in range(60):
        what = rng.random()
        if what < 0.5:
            new = torch.randn(rng.randint(1, 9), 6)
            row.append(0, new.expand(2, 1, 1, -1, -1))
            row.commit(len(new))
            row.wait(new)
            kept = torch.cat((kept, new))
        elif what < 0.8 and row.waiting:
            count = rng.randint(1, row.waiting)
            states = row.next_states(count)
            assert torch.equal(states, kept[row.deep.length :][:count])
            row.deep.append(1, states.expand(2, 1, 1, -1, -1))
            row.deep.commit(count)
            row.passed(count)
        else:
            length = rng.randint(0, row.length)
            row.crop(length)
            kept = kept[:length]
        assert row.length - row.deep.length == row.waiting
        assert row.held_tokens <= 1.1 * row.length + 8
        numbers = 12 * (row.held_tokens + row.deep.held_tokens) + 6 * row.waiting
        assert row.held_bytes <= 4 * numbers


def test_what_cannot_leave_is_refused_with_value_and_mend(split, tmp_path):
    for after, at, told in (
        (2, 0.0, "--leave-after is 2 and says nothing alone; give --leave-at"),
        (0, 0.5, "--leave-at is 0.5 and says nothing alone; give --leave-after"),
        (2, 1.5, "--leave-at is 1.5"),
        (2, -0.5, "--leave-at is -0.5"),
    ):
        with pytest.raises(FedloraError, match=told):
            LeaveEarly.of(after, at)
    assert LeaveEarly.of(0, 0.0) is None
    with pytest.raises(
        GenerationRefused, match=r"after block 3, .* lets tokens leave after 2; give"
    ):
        next(split.writer(leaving=LeaveEarly(3, 0.5)).tokens([5], Sampler(GREEDY), 1))
    row = split.row()
    row.open()
    row.extend(0, Private(split.text_ends().embed([5, 6, 7], 0)), 1)
    with pytest.raises(GenerationRefused, match=r"last is 1, and 0 tokens of session .* wait"):
        row.rest(1)
    row.close()
    for after in (4, 9):
        with pytest.raises(FedloraError, match=f"--leave-after is {after}, .* 0 to 3 of 4; give 1"):
            GenerationEngine(split.checkpoint, split.scenario, leave_after=after)
    for override, told in (
        ("model.client_back=1", "last blocks .model.client_back. have to see every token"),
        ("model.client_front=3", "the server has one block"),
        ('compute.device_map={cpu = "0-3"}', "compute.device_map places"),
    ):
        with pytest.raises(FedloraError, match=told):
            Generation(split.folder, "", (4,), override, leave_after=2)


def test_a_server_without_it_says_how_it_is_started(tmp_path):
    plain = Generation(tmp_path, "llama")
    with pytest.raises(GenerationRefused, match="lets none leave; serve with --leave-after 2, or"):
        next(plain.writer(leaving=LeaveEarly(2, 0.5)).tokens([5], Sampler(GREEDY), 1))
    row = plain.row()
    row.open()
    answer = plain.server.carry(Frame(m.GEN_REST, "0", 9, {"session": row._session, "last": 1}))
    assert "0 tokens of session" in answer.fields["reason"]


@pytest.mark.parametrize("target", ["1.self_attn.q_proj", "3.mlp.up_proj"])
def test_adapters_on_one_side_of_where_tokens_leave_are_those_of_the_whole_model(tmp_path, target):
    split = Generation(tmp_path, "llama", (4,), f'lora.targets=["{target}"]', leave_after=AFTER)
    ids, ends, row = PROMPTS[1], split.text_ends(), split.engine.new_row()
    split.engine.forward([NewTokens(row, ends.embed(ids, 0), split.ranks["0"])])
    waiting = WaitingTokens(row, len(ids), split.ranks["0"])
    logits = ends.logits(split.engine.finish([waiting])[0], 0, len(ids))
    expected = split.unsplit()(input_ids=torch.tensor([ids])).logits[0]
    assert float((logits - expected).abs().max()) < 1e-4
