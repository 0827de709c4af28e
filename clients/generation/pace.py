"""How many tokens to draft: as many as make a token soonest, by what exchanges took so far."""

from __future__ import annotations

_WEIGHT = 0.1  # of the latest figure in each mean
_FIRST_TRY, _LAST_TRY = 64, 1024
"""Exchanges without a draft, where none seems to pay, until one is tried again: at first, and after
many tries that did not pay."""


class DraftPace:
    """Chooses the length of drafts.

    With a share p of guesses right and exchanges of t0 + k t1 seconds, k drafts bring
    (1 - p^(k+1)) / (1 - p) tokens an exchange (Leviathan et al. 2023, equation 1).

    Parameters
    ----------
    most
        Longest draft.

    Attributes
    ----------
    exchanges, tokens
        Exchanges so far, and tokens that they brought.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._right = 0.5
        self._plain_s: float | None = None
        self._more_s: float | None = None
        self._since, self._try_every = 0, _FIRST_TRY
        self.exchanges = self.tokens = 0

    def length(self) -> int:
        """Return how many tokens to draft now."""
        if self._most == 0 or self._plain_s is None:
            return 0  # what an exchange takes without a draft has to be known first
        if self._more_s is None:
            return min(2, self._most)  # and then what a draft adds
        p, plain_s, more_s = self._right, self._plain_s, self._more_s

        def rate(k: int) -> float:
            return (1 - p ** (k + 1)) / (1 - p) / (plain_s + k * more_s)

        best = max(range(self._most + 1), key=rate)
        return 1 if best == 0 and self._since >= self._try_every else best

    def note(self, drafted: int, accepted: int, seconds: float) -> None:
        """Take in what an exchange took, and how many of its drafts were right."""
        self.exchanges += 1
        self.tokens += accepted + 1
        if drafted == 0:
            self._since += 1
            plain = self._plain_s
            self._plain_s = seconds if plain is None else plain + _WEIGHT * (seconds - plain)
            return
        if self._since >= self._try_every:
            self._try_every = min(2 * self._try_every, _LAST_TRY)
        elif accepted:
            self._try_every = _FIRST_TRY
        self._since = 0
        for right in [True] * accepted + [False] * (accepted < drafted):
            self._right += _WEIGHT * (min(right, 0.99) - self._right)
        if self._plain_s is not None:
            more = max(0.0, seconds - self._plain_s) / drafted
            before = more if self._more_s is None else self._more_s
            self._more_s = before + _WEIGHT * (more - before)
