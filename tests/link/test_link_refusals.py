"""A flood of refusals does not fill the log, and is told all the same."""

from __future__ import annotations

import logging

from fedlora.link.stream.server.refusals import MOST, PERIOD_S, Refusals


def test_a_flood_is_written_in_part_and_counted(caplog):
    now = [0.0]
    refusals = Refusals(logging.getLogger("fedlora.link"), clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "fedlora.link"):
        for number in range(1000):
            refusals.write("client %s is refused", number)
        assert len(caplog.messages) == MOST
        now[0] = PERIOD_S
        refusals.write("client %s is refused", "late")
    assert caplog.messages[MOST:] == [
        f"{1000 - MOST} more refusals are not written one by one",
        "client late is refused",
    ]


def test_what_was_counted_last_is_written_when_the_server_stops(caplog):
    refusals = Refusals(logging.getLogger("fedlora.link"))
    with caplog.at_level(logging.WARNING, "fedlora.link"):
        for number in range(MOST + 3):
            refusals.write("client %s is refused", number)
        refusals.flush()
        refusals.flush()
    assert caplog.messages[MOST:] == ["3 more refusals are not written one by one"]
