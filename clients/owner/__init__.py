"""The owner's side of a device: what leaves goes through its one door."""

from clients.owner.charges import Charges
from clients.owner.diary import Diary
from clients.owner.door import Door, Leaving
from clients.owner.origins import Origins, content
from clients.owner.private import Private, PrivateSamples, together, width_of
from clients.owner.reporting import Reporting, plan_reporting
from clients.owner.scenario import local_scenario
from clients.owner.siblings import warn_of_other_ledgers
from clients.owner.terms import DATA, STATISTICS, TEXT, OwnerTerms, own_number
from clients.owner.typed import check_arrived
from clients.owner.words import log_whole

__all__ = [
    "DATA",
    "STATISTICS",
    "TEXT",
    "Charges",
    "Diary",
    "Door",
    "Leaving",
    "Origins",
    "OwnerTerms",
    "Private",
    "PrivateSamples",
    "Reporting",
    "check_arrived",
    "content",
    "local_scenario",
    "log_whole",
    "own_number",
    "plan_reporting",
    "together",
    "warn_of_other_ledgers",
    "width_of",
]
