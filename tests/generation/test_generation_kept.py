"""A text that its process was killed in goes on identically from what is on disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.generation import Generation

from clients.generation import Completion, Sampler, Sampling, Writer
from clients.generation.kept_text import Asked, KeptText
from fedlora.errors import FedloraError

PROMPT = (5, 9, 33, 7, 61, 12)
DRAWN = Sampling(temperature=0.9, top_k=40, repetition_penalty=1.2, seed=8)
MOST = 12


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Generation:
    return Generation(tmp_path_factory.mktemp("gpt2"), "gpt2")


def letters(ids) -> str:
    return "".join(chr(97 + token % 26) for token in ids)


@pytest.fixture
def writer(split) -> Iterator[Writer]:
    found = split.writer()
    yield found
    found.close()


def completion(writer: Writer, sampler: Sampler, kept: KeptText | None = None) -> Completion:
    return Completion(writer, letters, PROMPT, sampler, MOST, ("zz",), None, kept)


def asked(sampler: Sampler, package: str) -> Asked:
    drawn = sampler.drawn
    return Asked("generate", package, PROMPT, sampler.sampling, drawn, MOST, ("zz",), "v")


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN])
def test_a_text_that_was_cut_off_anywhere_goes_on_as_it_would_have(writer, tmp_path, sampling):
    sampler = Sampler(sampling)
    sampler.skip(3, 101)  # of an earlier turn
    whole = completion(writer, sampler)
    expected = "".join(whole)
    assert len(whole.written) == MOST == sampler.drawn - 3
    for place in (0, 1, 7, MOST):
        sampler = Sampler(sampling)
        sampler.skip(3, 101)
        kept = KeptText.begin(tmp_path, asked(sampler, str(tmp_path)))
        pieces = iter(completion(writer, sampler, kept))
        for _ in range(place):
            next(pieces)
        kept.leave()
        with kept.path.open("ab") as file:
            file.write(b'{"token": 9')  # what a killed process had begun of a line
        again = KeptText.unfinished(tmp_path, "generate", tmp_path)
        assert again is not None and len(again.tokens) == place
        sampler = Sampler(again.asked.sampling)
        sampler.skip(again.asked.drawn + place, 101)
        went_on = completion(writer, sampler, again)
        assert "".join(went_on) == expected
        assert (went_on.written, went_on.finish) == (whole.written, whole.finish)
        again.leave()
        read = KeptText.unfinished(tmp_path, "generate", tmp_path)
        assert read is not None and read.tokens == whole.written
        read.done()
    assert not list(tmp_path.iterdir())


def test_a_kept_text_is_its_owners_and_of_one_process(tmp_path):
    kept = KeptText.begin(tmp_path / "texts", asked(Sampler(DRAWN), str(tmp_path)))
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert KeptText.unfinished(tmp_path / "texts", "generate", tmp_path) is None  # it is written
    kept.add(7)
    kept.leave()
    for verb, package in (("chat", tmp_path), ("generate", tmp_path / "other")):
        assert KeptText.unfinished(tmp_path / "texts", verb, package) is None
    found = KeptText.unfinished(tmp_path / "texts", "generate", tmp_path)
    assert found is not None and (found.tokens, found.asked) == ([7], kept.asked)
    found.done()
    (tmp_path / "texts" / "0.text").write_text('{"prompt": 3}\n')
    with pytest.raises(FedloraError, match=r"0\.text is no text that was begun .*; remove it"):
        KeptText.unfinished(tmp_path / "texts", "generate", tmp_path)
