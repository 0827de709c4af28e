"""What a run leaves behind: records, summary, tables, plots, a page."""

from fedlora.report.notices import NoticeHandler
from fedlora.report.progress import PhaseProgress, ProgressView
from fedlora.report.records import ClientRecord, RoundRecord, Rounds, client_ids, cut_bits, mean
from fedlora.report.result import RunResult
from fedlora.report.result_table import write_tables
from fedlora.report.rows import bits_column, plural, result_rows
from fedlora.report.run_folder import RUN, RunFolder
from fedlora.report.summary import Summary
from fedlora.report.table import print_result
from fedlora.report.units import (
    ABSENT,
    MetricText,
    bits_text,
    bytes_text,
    count_text,
    decibels,
    energy_text,
    number_text,
    seconds_text,
)

__all__ = [
    "ABSENT",
    "RUN",
    "ClientRecord",
    "MetricText",
    "NoticeHandler",
    "PhaseProgress",
    "ProgressView",
    "RoundRecord",
    "Rounds",
    "RunFolder",
    "RunResult",
    "Summary",
    "bits_column",
    "bits_text",
    "bytes_text",
    "client_ids",
    "count_text",
    "cut_bits",
    "decibels",
    "energy_text",
    "mean",
    "number_text",
    "plural",
    "print_result",
    "result_rows",
    "seconds_text",
    "write_tables",
]
