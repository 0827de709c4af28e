"""How much generation may hold, and how it refuses what is more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fedlora.checks import number, whole
from fedlora.errors import FedloraError
from fedlora.generation.pages import PAGE_TOKENS

_MOST = 1 << 40

Refusal = Literal["full", "gone", "long", "wrong", "failed"]
REFUSALS: Final[Mapping[str, str]] = {
    "full": "no room for more tokens; try again later",
    "gone": "no such session; open another, and send its tokens again",
    "long": "more tokens than the model has positions",
    "wrong": "the request is none",
    "failed": "the server failed",
}


class GenerationRefused(FedloraError):
    """The server does not go on with a session; others do not notice.

    Attributes
    ----------
    refusal
        One of ``REFUSALS``.
    """

    def __init__(self, refusal: Refusal, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal: Refusal = refusal


@dataclass(frozen=True)
class CacheBounds:
    """The most that sessions may hold.

    Attributes
    ----------
    tokens_in_all
        Tokens of all sessions together, counted in whole pages.
    tokens_per_client
        Tokens of all sessions of one client.
    sessions_per_client
        Sessions that one client may have open.
    idle_s
        Seconds without a request after which a session is evicted.
    page_tokens
        Tokens of a page.
    """

    tokens_in_all: int = 1 << 16
    tokens_per_client: int = 1 << 13
    sessions_per_client: int = 8
    idle_s: float = 600.0
    page_tokens: int = PAGE_TOKENS

    def __post_init__(self) -> None:
        for name in ("tokens_in_all", "tokens_per_client", "sessions_per_client", "page_tokens"):
            whole(name, getattr(self, name), 1, _MOST)
        number("idle_s", self.idle_s, 0.0)


def field_of(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return a whole number that a request holds.

    Raises
    ------
    GenerationRefused
        When it is none in this range.
    """
    try:
        return whole(name, fields.get(name), low, high)
    except FedloraError as error:
        raise GenerationRefused("wrong", str(error)) from None
