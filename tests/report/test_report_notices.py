"""What a run warns of is seen where its user looks."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from fedlora.ranks import GuardedStrategy, Projection, RankSpace, RankStrategy
from fedlora.report import NoticeHandler, ProgressView, RunFolder
from fedlora.report.page import render


class Broken(RankStrategy):
    def allocate(self, round, clients, space):
        raise ValueError("no ranks today")


def test_a_strategys_fault_reaches_screen_and_report(tmp_path):
    folder, logger = RunFolder.create(tmp_path / "run"), logging.getLogger("fedlora")
    folder.write_scenario('name = "mine"\n')
    handler = NoticeHandler(folder)
    logger.addHandler(handler)
    try:
        space = RankSpace((Projection("q_proj", 0, 8, 8),), r_max=2)
        GuardedStrategy(Broken()).allocate(1, {"7": None}, space)
        logger.error("what failed is said by the end of the run")
    finally:
        logger.removeHandler(handler)
    folder.append_event("done", status="finished", text="")
    screen = io.StringIO()
    with ProgressView(folder, console=Console(file=screen, width=200)) as view:
        view.follow(lambda: True)
    for shown in (screen.getvalue(), render(folder)):
        assert "strategy Broken: round 1: allocate raised ValueError" in shown
        assert "no ranks today" in shown
        assert "all clients keep their last valid ranks" in shown
        assert "what failed" not in shown
