"""Answers as OpenAI's API has them, whole and piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.generation import Finish


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes
    ----------
    model
        What applications call the model.
    kind
        ``chat.completion`` or ``text_completion``.
    name
        What the answer is called by.
    created
        When it began, in seconds since 1970.
    """

    model: str
    kind: str
    name: str
    created: int

    @property
    def _chat(self) -> bool:
        return self.kind == "chat.completion"

    def whole(self, text: str, finish: Finish, usage: Mapping[str, int]) -> dict[str, Any]:
        """Return the answer that holds all."""
        said: dict[str, Any] = {"text": text}
        if self._chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return self._told(self.kind, said, finish, {"usage": dict(usage)})

    def opening(self, *, usage: bool) -> dict[str, Any] | None:
        """Return what a stream begins with, if anything; ``usage`` says whether it ends with it."""
        if not self._chat:
            return None
        return self._piece({"role": "assistant", "content": ""}, None, usage=usage)

    def piece(self, text: str, *, usage: bool) -> dict[str, Any]:
        """Return a piece of a stream."""
        return self._piece({"content": text} if self._chat else text, None, usage=usage)

    def last(self, finish: Finish, *, usage: bool) -> dict[str, Any]:
        """Return what says why a stream ends."""
        return self._piece({} if self._chat else "", finish, usage=usage)

    def usage(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """Return what says what a stream took."""
        told = self._told(self._streamed, {}, None, {"usage": dict(usage)})
        return {**told, "choices": []}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self._chat else self.kind

    def _piece(self, said: Any, finish: Finish | None, *, usage: bool) -> dict[str, Any]:
        more = {"usage": None} if usage else {}
        name = "delta" if self._chat else "text"
        return self._told(self._streamed, {name: said}, finish, more)

    def _told(
        self, kind: str, said: Mapping[str, Any], finish: Finish | None, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        prefix = "chatcmpl" if self._chat else "cmpl"
        told = {"id": f"{prefix}-{self.name}", "object": kind, "created": self.created}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {**told, "model": self.model, "choices": [choice], **more}
