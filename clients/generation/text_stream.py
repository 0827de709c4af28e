"""Text from tokens as they come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedlora.config import require

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into the text that can be shown.

    Parameters
    ----------
    decode
        Text of token ids.
    stops
        Texts at which the text ends; they are not shown.

    Attributes
    ----------
    text
        What was shown so far.
    stopped
        Whether a stop string was met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        require(all(stops), "a stop string is empty, at which every text would end; leave it out")
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take in a token and return the text that it adds; what may still change is held back."""
        self._ids.append(token)
        return self._show(last=False)

    def rest(self) -> str:
        """Return what was held back, once no token follows."""
        return "" if self.stopped else self._show(last=True)

    def _show(self, *, last: bool) -> str:
        whole = self._decode(self._ids)
        ends = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if ends:
            whole, self.stopped = whole[: min(ends)], True
        elif not last:
            whole = whole.rstrip(_UNFINISHED)
            whole = whole[: len(whole) - self._begun(whole)]
        added = whole[len(self.text) :]
        self.text += added
        return added

    def _begun(self, text: str) -> int:
        """Return the characters at the end of a text with which a stop string may begin."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
