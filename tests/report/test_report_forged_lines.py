"""No text of a peer makes two lines of one, or moves the cursor of whoever reads them."""

from __future__ import annotations

import io
import json
import logging

from rich.console import Console

from fedlora.observe.outcome import JsonFormatter
from fedlora.report import NoticeHandler, ProgressView, RunFolder

FORGED = (
    "tired\n2026-01-01 00:00:00 INFO fedlora.server: all is well\x1b[2J\u2028\x9b1A[red]red[/red]"
)


def test_a_reason_with_line_feeds_and_escapes_is_one_line_everywhere(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    handlers = [
        folder.log_handler(),
        folder.log_handler(formatter=JsonFormatter()),
        NoticeHandler(folder),
    ]
    logger = logging.getLogger("fedlora.test_forged")
    for handler in handlers:
        logger.addHandler(handler)
    try:
        logger.warning("client %s leaves the run: %s", "1", FORGED)
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
    [line] = folder.log.read_text().splitlines()
    assert line.isprintable()
    [line] = (folder.path / "log.jsonl").read_text().splitlines()
    assert line.isprintable()
    assert json.loads(line)["message"].endswith(FORGED)  # escaped, and whole
    [event], _ = folder.read_events()
    assert event["text"].isprintable()


def test_the_console_shows_a_peers_text_as_it_is(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.append_event("message", level="warning", text=FORGED)
    screen = io.StringIO()
    view = ProgressView(folder, Console(file=screen, width=500, force_terminal=False))
    view.poll()
    [line] = screen.getvalue().splitlines()
    assert "[red]red[/red]" in line
    assert line.isprintable()


def test_our_own_traceback_keeps_its_lines(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    handler = folder.log_handler()
    logger = logging.getLogger("fedlora.test_forged")
    logger.addHandler(handler)
    try:
        raise ValueError("ours")
    except ValueError:
        logger.exception("the run failed")
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = folder.log.read_text().splitlines()
    assert lines[-1] == "ValueError: ours"
    assert len(lines) > 3
