"""What clients report when a round begins: read, checked, and booked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.link import Frame, messages as m
from fedlora.ranks import ClientReport
from fedlora.server.air import Air
from fedlora.server.exchange.cohort import Cohort

log = logging.getLogger("fedlora.server")


class Reports:
    """Reads the reports of a round.

    Parameters
    ----------
    scenario
        Says whether statistics of the text were asked for; others are left unread.
    cohort
        Loses who reports what is not valid.
    air
        Told the channels; books the statistics.
    """

    def __init__(self, scenario: Scenario, cohort: Cohort, air: Air) -> None:
        self._asks = scenario.ranks.statistics
        self._cohort = cohort
        self._air = air
        self._silent: set[str] = set()

    def read(self, round_: int, replies: Mapping[str, Frame]) -> dict[str, ClientReport]:
        """Return the reports by client; a client whose report is not valid is dropped."""
        reports = {}
        for client, reply in replies.items():
            try:
                self._cohort.expect(client, reply, m.REPORT)
                report = ClientReport.from_dict(dict(reply.fields))
                report = self._air.note_report(round_, client, report)
                if not self._asks:
                    report = dataclasses.replace(report, statistics=None)
                reports[client] = report
            except FedloraError as error:
                self._cohort.drop(client, str(error))
        self._note_silent(reports)
        return reports

    def book(self, reports: Mapping[str, ClientReport]) -> None:
        """Book the statistics that came, as control data of the round that is open."""
        for client, report in reports.items():
            if report.statistics is not None:
                self._air.book_statistics(client, report.statistics)

    def _note_silent(self, reports: Mapping[str, ClientReport]) -> None:
        """Say once of each client that it was asked for statistics and tells none."""
        if not self._asks:
            return
        silent = [c for c, r in reports.items() if r.statistics is None and c not in self._silent]
        self._silent.update(silent)
        if silent:
            log.warning(
                "ranks.statistics asks for statistics of the text, but %d of %d clients (first: "
                "%s) tell none, as their owners, or in a simulation privacy, do not allow it",
                len(silent),
                len(reports),
                silent[0],
            )
