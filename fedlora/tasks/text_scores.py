"""Scores of texts that a model writes after held-out prompts, beside those that people wrote.

A client tells sums alone, which add up over clients to the scores of all texts: how many are equal,
the sum of ROUGE-L (Lin 2004), and the counts of n-grams from which the BLEU of a corpus follows
(Papineni et al. 2002). ROUGE-L is that of ``rouge-score``, BLEU that of ``sacrebleu``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import FedloraError, ProtocolError
from fedlora.tasks.base import task_class
from fedlora.tasks.metrics import Metric, read_count, read_loss, read_table

_ORDERS = 4
_FIELDS = ("texts", "equal", "rouge_l", "matches", "grams", "written_words", "words")


def check_text_scores(scenario: Scenario) -> None:
    """Refuse to have prompts completed by what writes no text, or without the libraries.

    Raises
    ------
    FedloraError
        See above.
    """
    if not (prompts := scenario.evaluate.generate):
        return
    if not task_class(scenario.task.kind).language():
        raise FedloraError(
            f"evaluate.generate is {prompts}, and a model of task.kind {scenario.task.kind!r} "
            "writes no text; set it to 0"
        )
    for name, module in (("rouge-score", "rouge_score"), ("sacrebleu", "sacrebleu")):
        if importlib.util.find_spec(module) is None:
            raise FedloraError(
                f"evaluate.generate is {prompts} and {name} is not installed; "
                "pip install 'fedlora[texts]', or set it to 0"
            )


@dataclass(frozen=True)
class TextCounts:
    """Sums over written texts.

    Attributes
    ----------
    texts
        Number of texts.
    equal
        Those equal to their references, but for blanks at both ends.
    rouge_l
        Sum of their F1 measures of the longest common subsequence of words.
    matches, grams
        N-grams of one to four words that the references have as well, and all that were written.
    written_words, words
        Words written, and words of the references.
    """

    texts: int
    equal: int
    rouge_l: float
    matches: tuple[int, ...]
    grams: tuple[int, ...]
    written_words: int
    words: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> TextCounts:
        """Return the sums over texts, each with its reference."""
        rouge, bleu = _scorers()
        equal, common = 0, 0.0
        sums = [0] * (2 * _ORDERS + 2)
        for written, reference in pairs:
            equal += written.strip() == reference.strip()
            common += float(rouge.score(reference, written)["rougeL"].fmeasure)
            own = bleu.corpus_score([written], [[reference]])
            parts = (*own.counts, *own.totals, own.sys_len, own.ref_len)
            sums = [total + int(part) for total, part in zip(sums, parts, strict=True)]
        matches, grams = tuple(sums[:_ORDERS]), tuple(sums[_ORDERS : 2 * _ORDERS])
        return cls(len(pairs), equal, common, matches, grams, *sums[2 * _ORDERS :])

    @classmethod
    def from_dict(cls, value: Any, most: int) -> TextCounts:
        """Read what ``to_dict`` wrote on the other side of a wire.

        Parameters
        ----------
        value
            What a client told.
        most
            Texts that it may have.

        Raises
        ------
        ProtocolError
            When it is not the sums of at most so many texts.
        """
        table = read_table(value, *_FIELDS)
        texts, equal, written, words = (
            read_count(table[name], name) for name in ("texts", "equal", "written_words", "words")
        )
        matches, grams = (_orders(table, name) for name in ("matches", "grams"))
        common = read_loss(table["rouge_l"], texts)
        right = 1 <= texts <= most and equal <= texts and common <= texts * (1 + 1e-9)
        if not right or any(m > g for m, g in zip(matches, grams, strict=True)):
            raise ProtocolError(
                f"scores of {texts} texts, {equal} of them equal, cannot come from {most} prompts"
            )
        return cls(texts, equal, common, matches, grams, written, words)

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {
            "texts": self.texts,
            "equal": self.equal,
            "rouge_l": self.rouge_l,
            "matches": list(self.matches),
            "grams": list(self.grams),
            "written_words": self.written_words,
            "words": self.words,
        }

    def __add__(self, other: TextCounts) -> TextCounts:
        """Return the sums over both sets of texts."""
        return TextCounts(
            self.texts + other.texts,
            self.equal + other.equal,
            self.rouge_l + other.rouge_l,
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
            tuple(a + b for a, b in zip(self.grams, other.grams, strict=True)),
            self.written_words + other.written_words,
            self.words + other.words,
        )

    def metrics(self) -> tuple[Metric, ...]:
        """Return ROUGE-L and exact match, shares from 0 to 1, and BLEU, from 0 to 100."""
        _, bleu = _scorers()
        corpus = bleu.compute_bleu(
            list(self.matches),
            list(self.grams),
            self.written_words,
            self.words,
            smooth_method="exp",
        )
        return (
            Metric("rouge_l", self.rouge_l / self.texts, True),
            Metric("bleu", float(corpus.score), True),
            Metric("exact_match", self.equal / self.texts, True),
        )


class _Words:
    """Words in any script: the library's own tokenizer drops all that is not a to z or a digit."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


@lru_cache(maxsize=1)
def _scorers() -> tuple[Any, Any]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    return RougeScorer(["rougeL"], tokenizer=_Words()), BLEU()


def _orders(table: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = table[name]
    if not isinstance(value, list) or len(value) != _ORDERS:
        raise ProtocolError(f"{name} are counts of n-grams of one to {_ORDERS} words")
    return tuple(read_count(count, name) for count in value)
