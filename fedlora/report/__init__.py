"""What a run leaves behind: records, summary, tables, plots, a page."""

from fedlora.report.records import ClientRecord, RoundRecord, Rounds, client_ids
from fedlora.report.run_folder import RunFolder
from fedlora.report.units import ABSENT, bits_text, count_text, number_text, seconds_text

__all__ = [
    "ABSENT",
    "ClientRecord",
    "RoundRecord",
    "Rounds",
    "RunFolder",
    "bits_text",
    "client_ids",
    "count_text",
    "number_text",
    "seconds_text",
]
