"""How a client's text differs from others': the statistics that it may tell the rank strategy.

AirLLM's released code lets its policy observe, for a batch, the entropy of its tokens over the
logarithm of how many are distinct, and the fraction of unknown ones (arXiv 2507.11515). The second
is 0 for every byte-level vocabulary, and the first nearly constant: mean 0.931, standard deviation
0.0065 over batches; 0.91 to 0.97 between the eight dialects of the offline default, where it
follows the length of the rows (correlation -0.90). So the four here are others. They do not depend
on how much text a client has, each tells of something else, and where clients differ in language
they do: between these dialects their standard deviation is 5 to 14 times that which the choice of a
client's rows gives. Between clients that share one language (an IID partition) they are alike.

All are functions of the text alone. The entropy of the labels would tell of them, which is what
privacy noise hides, so it is not among them. Each figure is told with three digits: no strategy
needs more, and the fourth would tell of single records.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedlora.ranks import DataStatistics
from fedlora.tasks import Sample, Tokenizer

WINDOW_TOKENS = 64

_DIGITS = 3
_MARK = re.compile(r"<\S+>|\[\S+\]")  # such as <0x0A>, </s>, [unused7]: no piece of a text


def text_statistics(samples: Sequence[Sample], tokenizer: Tokenizer) -> DataStatistics:
    """Return the statistics of a client's text, cut to ``task.max_length`` as it is trained on.

    Special tokens do not count. A figure that the text is too short for is None.

    Parameters
    ----------
    samples
        Training samples.
    tokenizer
        What they were encoded with.

    Returns
    -------
    DataStatistics
        ``token_surprisal`` in bits, the mean of ``token_surprisals`` over all tokens;
        ``type_token_ratio``, distinct tokens over tokens, the mean over consecutive windows of 64
        tokens (the mean segmental ratio of Johnson 1944; over a whole text it would fall with its
        length); ``pieces_per_word``, tokens for each word of the decoded text; ``mean_length``,
        tokens of a sample.
    """
    texts = [[i for i in sample.ids if i not in tokenizer.special_ids] for sample in samples]
    tokens = np.array([i for text in texts for i in text], dtype=np.int64)
    words = sum(len(tokenizer.decode(text).split()) for text in texts)
    windows = tokens[: len(tokens) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS)
    distinct = [len(np.unique(window)) for window in windows]
    table = token_surprisals(tokenizer)
    return DataStatistics(
        token_surprisal=_ratio(table[np.minimum(tokens, len(table) - 1)].sum(), len(tokens)),
        type_token_ratio=_ratio(sum(distinct), windows.size),
        pieces_per_word=_ratio(len(tokens), words),
        mean_length=_ratio(len(tokens), len(texts)),
    )


@lru_cache(maxsize=1)  # all clients of a process have one tokenizer
def token_surprisals(tokenizer: Tokenizer) -> NDArray[np.float64]:
    """Return -log2 of each token's frequency in public text, as its vocabulary tells it, in bits.

    A vocabulary is in the order in which its tokens were frequent in the public corpus that it was
    made from, so it serves as the reference that every device has. By Zipf's law the k-th token's
    frequency is in proportion to 1 / k. Single characters, which a vocabulary lists before or after
    all others, count from 1 anew. On English prose the estimate is about 3 bits too high, and
    correlates by 0.74 to 0.86 with the surprisal that was counted in that text (GPT-2's tokenizer
    on AG News, SST-2 and Shakespeare); on the templates of E2E, whose words are frequent there
    alone, by 0.14.

    Returns
    -------
    ndarray
        Shape (vocabulary + 1,). The last entry is for ids that the vocabulary lacks; they and the
        marks in it, such as that of an unknown word, are as rare as its rarest token.
    """
    places = np.zeros(tokenizer.vocab_size + 1)
    last = {True: 0, False: 0}
    for number in range(tokenizer.vocab_size):
        token = tokenizer.backend.id_to_token(number)
        if token is None or _MARK.fullmatch(token):
            continue
        single = len(token) == 1
        last[single] += 1
        places[number] = last[single]
    listed = places > 0
    total = (1 / places[listed]).sum() if listed.any() else 1.0
    return np.log2(np.where(listed, places, max(places.max(), 1.0)) * total)


def _ratio(total: float, count: int) -> float | None:
    """Return a ratio to as many digits as are told; None of nothing."""
    return float(f"{total / count:.{_DIGITS}g}") if count else None
