"""The next token of a text, by transformers' own logits processors."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedlora.checks import number, whole
from fedlora.config import require

_MOST_ID = 1 << 31
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes
    ----------
    temperature
        What logits are divided by before a token is drawn; 0 takes the likeliest one.
    top_k
        Draw among so many likeliest tokens; 0: among all.
    top_p
        Draw among the likeliest tokens that have this probability together.
    repetition_penalty
        What logits of tokens that were there are divided by (multiplied where they are negative);
        1 changes nothing.
    seed
        Of the draws; None: one from the system.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 0.0, 100.0)
        whole("top_k", self.top_k, 0, _MOST_ID)
        number("top_p", self.top_p, 0.0, 1.0)
        require(self.top_p > 0, f"top_p is {self.top_p}; set a probability above 0, at most 1")
        number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.seed is not None:
            whole("seed", self.seed, 0, _SEEDS - 1)
        if self.temperature == 0:
            idle = {"top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
            plain = Sampling.__dataclass_fields__
            odd = [
                f"{name} {value}" for name, value in idle.items() if value != plain[name].default
            ]
            require(
                not odd,
                f"temperature is 0, which takes the likeliest token, so that {' and '.join(odd)} "
                "would change nothing; set a temperature as well",
            )


class Sampler:
    """Chooses the tokens of one text, one draw for each.

    With one seed the tokens are those of transformers' ``generate`` after
    ``torch.manual_seed(seed)``, where logits are equal.

    Parameters
    ----------
    sampling
        How.

    Attributes
    ----------
    sampling
        The same, with the seed of the draws where there are any.
    drawn
        Tokens that were chosen so far.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._draws = sampling.temperature > 0
        if self._draws and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        self.sampling, self.drawn = sampling, 0
        self._processors = _processors(sampling)
        self._generator = torch.Generator()
        self._generator.manual_seed(sampling.seed or 0)

    def skip(self, tokens: int, vocabulary: int) -> None:
        """Go on as if so many tokens had been drawn: a draw takes as much chance whatever it gives.

        Parameters
        ----------
        tokens
            How many.
        vocabulary
            Logits of a token.
        """
        self.drawn += tokens
        for _ in range(tokens if self._draws else 0):
            torch.multinomial(torch.ones(1, vocabulary), 1, generator=self._generator)

    def pick(self, ids: Sequence[int], logits: torch.Tensor) -> int:
        """Return the next token.

        Parameters
        ----------
        ids
            The text so far, prompt included.
        logits
            Of the next token, shape (vocabulary,).
        """
        self.drawn += 1
        scores = logits[None]
        if self._processors:
            scores = self._processors(torch.tensor([ids]), scores.clone())
        if not self._draws:
            return int(scores[0].argmax())
        chances = scores.softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))


def _processors(sampling: Sampling) -> Any:
    """Return the processors in the order in which ``generate`` applies them; empty for none."""
    from transformers.generation import logits_process as own

    wanted = own.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        wanted.append(own.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0, 1):
        wanted.append(own.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        wanted.append(own.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        wanted.append(own.TopPLogitsWarper(sampling.top_p))
    return wanted
