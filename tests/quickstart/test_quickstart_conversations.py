"""The shipped conversations are those that their module makes of the shipped requests."""

from __future__ import annotations

import json
from pathlib import Path

from simulations.quickstart.conversations import conversations

FILE = Path(__file__).parents[2] / "simulations" / "quickstart" / "conversations.jsonl"


def test_the_shipped_conversations_are_made_of_the_shipped_requests():
    text = conversations()
    assert FILE.read_text(encoding="utf-8") == text
    rows = [json.loads(line) for line in text.splitlines()]
    roles = {tuple(message["role"] for message in row["messages"]) for row in rows}
    assert roles == {("user", "assistant", "user", "assistant")}
    assert len({row["dialect"] for row in rows}) == 8
