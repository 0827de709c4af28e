"""What a scenario comes to before anything runs: its faults, its rows, its tokens, its sizes."""

from fedlora.preview.faults import Faults, find_faults
from fedlora.preview.reading import read_all
from fedlora.preview.rows import ClientSamples, RowView, SampleView, view_rows
from fedlora.preview.sizes import Load, Sizes, end_sizes, predict_sizes

__all__ = [
    "ClientSamples",
    "Faults",
    "Load",
    "RowView",
    "SampleView",
    "Sizes",
    "end_sizes",
    "find_faults",
    "predict_sizes",
    "read_all",
    "view_rows",
]
