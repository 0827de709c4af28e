"""Split generation is the unsplit model's, whoever shares the batch, in every family."""

from __future__ import annotations

import threading

import pytest
import torch
from support.architectures import ACCEPTED, tiny
from support.generation import R_MAX, Generation, random_adapter, written

from clients.generation import Drafts, Sampler, Sampling
from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.generation.engine import GenerationEngine, NewTokens
from fedlora.generation.pages import RowPages
from fedlora.registry import resolve
from fedlora.split import LIBRARIES, Checkpoint, Family

CAUSAL = [kind for kind in ACCEPTED if resolve("families", kind, Family).causal]
QUICK = ("gpt2", "gemma3_text", "stablelm")
GREEDY = Sampling()
# Which rows a forward takes, and how many tokens of each: rows of ages 0 to 15, chunks, steps.
FORWARDS = [
    {0: 7},
    {0: 4, 1: 5},
    {0: 1, 1: 1, 2: 9},
    {0: 3, 1: 1, 2: 1},
    {1: 4, 2: 5},
]

pytestmark = pytest.mark.usefixtures("prepacks_small")


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = [sum(step.get(row, 0) for step in FORWARDS) for row in range(3)]
    return [torch.randint(3, 101, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in CAUSAL],
)
@torch.no_grad()
def test_rows_of_any_age_and_rank_have_the_logits_of_the_unsplit_model(kind, tmp_path):
    split = Generation(tmp_path, kind, (R_MAX, 1, 2))
    ends, pages, sent, found = split.text_ends(), [RowPages(8) for _ in range(3)], [0] * 3, {}
    for step in FORWARDS:
        rows = []
        for row, count in step.items():
            ids = texts()[row][sent[row] : sent[row] + count]
            up = ends.embed(ids, sent[row])
            rows.append(NewTokens(pages[row], up, split.ranks[str(row)]))
            sent[row] += count
        for (row, count), states in zip(step.items(), split.engine.forward(rows), strict=True):
            found.setdefault(row, []).append(ends.logits(states, 0, count))
    for row, ids in enumerate(texts()):
        expected = split.unsplit(str(row))(input_ids=torch.tensor([ids])).logits[0]
        assert float((torch.cat(found[row]) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("form", ["bf16", "int8", "nf4"])
@torch.no_grad()
def test_blocks_in_few_bits_have_the_logits_of_the_model_with_their_matrices(form, tmp_path):
    if library := LIBRARIES.get(form):
        pytest.importorskip(library, reason=f"needs fedlora[{library}]")
    split = Generation(tmp_path, "llama", (R_MAX,), f"model.weights={form}")
    ends, pages, ids = split.text_ends(), RowPages(8), texts()[1]
    found, position = [], 0
    for count in (len(ids) - 2, 1, 1):
        up = ends.embed(ids[position : position + count], position)
        states = split.engine.forward([NewTokens(pages, up, split.ranks["0"])])[0]
        found.append(ends.logits(states, 0, count))
        position += count
    expected = split.unsplit()(input_ids=torch.tensor([ids])).logits[0]
    assert float((torch.cat(found) - expected).abs().max()) < 1e-4


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Generation:
    """A server with four clients of ranks 4, 1, 0 and 2, that takes prompts in small chunks."""
    return Generation(tmp_path_factory.mktemp("llama"), "llama", (4, 1, 0, 2), chunk_tokens=20)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (23, 5, 1, 30)]


def test_clients_that_come_and_go_write_what_each_would_write_alone(llama, prompts):
    found: dict[int, list[int]] = {}

    def write(number: int) -> None:
        writer = llama.writer(str(number))
        first = list(writer.tokens(prompts[number], Sampler(GREEDY), 4 + 2 * number))
        again = list(writer.tokens(prompts[number], Sampler(GREEDY), 4 + 2 * number))
        assert first == again
        found[number] = first
        writer.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, prompt in enumerate(prompts):
        model = llama.unsplit(str(number))
        assert found[number] == written(model, prompt, 4 + 2 * number), number
    assert len(llama.server.sessions) == 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(repetition_penalty=1.3),
        Sampling(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1, seed=11),
        Sampling(temperature=1.0, seed=3),
    ],
)
@pytest.mark.parametrize("drafted", [False, True])
def test_every_way_to_choose_tokens_is_that_of_transformers(llama, prompts, sampling, drafted):
    prompt = (prompts[1] * 3)[:14]  # which repeats itself, so that drafts are made
    writer = llama.writer("3", longest_draft=6 if drafted else 0)
    drafts = Drafts(prompt) if drafted else None
    found = list(writer.tokens(prompt, Sampler(sampling), 24, drafts))
    writer.close()
    unsplit = llama.unsplit("3")  # which draws numbers when it is made
    torch.manual_seed(sampling.seed or 0)
    options = {"repetition_penalty": sampling.repetition_penalty}
    if sampling.temperature:
        options |= {
            **{"do_sample": True, "temperature": sampling.temperature},
            **{"top_k": sampling.top_k, "top_p": sampling.top_p},
        }
    assert found == written(unsplit, prompt, 24, **options)


def test_right_drafts_save_exchanges_and_wrong_ones_change_no_token(llama, prompts):
    expected = written(llama.unsplit(), prompts[0], 16)

    class Fixed(Drafts):
        """Guesses what it is told."""

        def __init__(self, guesses: list[int]) -> None:
            super().__init__(prompts[0])
            self.left = guesses

        def add(self, token: int) -> None:
            super().add(token)
            self.left = self.left[1:]

        def propose(self, most: int) -> list[int]:
            return self.left[:most]

    wrong = [token if n % 3 else (token + 1) % 101 for n, token in enumerate(expected)]
    exchanges = []
    for guesses in (expected, wrong):
        writer = llama.writer(longest_draft=4)
        writer.pace.length = lambda: 4  # type: ignore[method-assign]
        assert list(writer.tokens(prompts[0], Sampler(GREEDY), 16, Fixed(guesses))) == expected
        exchanges.append(writer.pace.exchanges)
        writer.close()
    assert exchanges == [3, 5]


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.client_front=1", "model.client_back=2"),
        ("model.client_back=1",),
        ("model.client_front=1", "model.server_norm=true"),
    ],
)
def test_blocks_on_the_device_go_on_with_its_own_rows(overrides, tmp_path):
    split = Generation(tmp_path, "gemma2", (R_MAX,), *overrides)
    writer = split.writer()
    prompt = texts()[0]
    found = list(writer.tokens(prompt, Sampler(GREEDY), 9))
    assert found == written(split.unsplit(), prompt, 9)
    other = [*prompt[:6], *texts()[1]]  # of which the first six tokens are kept
    assert list(writer.tokens(other, Sampler(GREEDY), 5)) == written(split.unsplit(), other, 5)


def test_a_text_ends_at_an_end_token_and_at_the_last_position(llama, prompts):
    expected = written(llama.unsplit(), prompts[0], 12)
    writer = llama.writer(ends=(expected[5],))
    found = list(writer.tokens(prompts[0], Sampler(GREEDY), 12))
    assert found == expected[: expected.index(expected[5]) + 1]
    writer = llama.writer()
    assert len(list(writer.tokens(prompts[0], Sampler(GREEDY), 500))) == 66 - 23 + 1
    with pytest.raises(FedloraError, match="has 67 tokens, and the model 66 positions"):
        next(writer.tokens([5] * 67, Sampler(GREEDY), 1))
    with pytest.raises(FedloraError, match="the prompt is empty"):
        next(writer.tokens([], Sampler(GREEDY), 1))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_that_writes_nothing_is_refused(kind, tmp_path):
    tiny(kind, tmp_path)
    config = with_overrides(Scenario(), [f"model.path={tmp_path}", "task.kind=causal_lm"])
    with pytest.raises(FedloraError, match=f"model_type '{kind}' .* cannot generate"):
        GenerationEngine(Checkpoint(tmp_path), config)


def test_frequencies_that_change_with_the_length_end_a_row_where_they_would(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    tiny("llama", tmp_path / "dynamic", rope_parameters=rope)
    split = Generation(tmp_path / "dynamic")
    assert split.engine.most_tokens == 66
    prompt = texts()[0]
    found = list(split.writer().tokens(prompt, Sampler(GREEDY), 90))
    assert found == written(split.unsplit(), prompt, len(found))
    assert len(found) == 66 - len(prompt) + 1


def test_an_adapter_of_another_run_is_refused(llama, tmp_path):
    adapter = random_adapter(llama.engine, llama.folder)
    factors = dict(list(adapter.factors.items())[1:])
    for odd, match in (
        (adapter.__class__(factors, 8.0, "", "CAUSAL_LM"), "give the adapter of this run"),
        (adapter.__class__(adapter.factors, 9.0, "", "CAUSAL_LM"), "scale is 9 / 4"),
    ):
        with pytest.raises(FedloraError, match=match):
            llama.engine.load(odd)
    with pytest.raises(FedloraError, match="do not fit"):
        llama.engine.checked_ranks([9] * len(llama.engine.projections))
