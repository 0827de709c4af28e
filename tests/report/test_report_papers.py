"""Figures and tables as papers want them, and intervals that stay where the metric can be."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure
from scipy import stats

from fedlora.errors import FedloraError
from fedlora.report import MetricText
from fedlora.report.figure import parse_formats, save
from fedlora.report.result_table import latex_table, markdown_table
from simulations.studies.compare.report import _mean_text, means_rows
from simulations.studies.compare.statistics import LIMITS, interval


def test_a_figure_is_written_in_every_format_and_the_same_each_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 1])
        save(figure, tmp_path / f"{name}.png", parse_formats("svg, PDF"))
        files = [(tmp_path / f"{name}.{form}").read_bytes() for form in ("png", "pdf", "svg")]
        contents.append(files)
    assert contents[0] == contents[1]
    assert [c[:4] for c in contents[0][:2]] == [b"\x89PNG", b"%PDF"]
    assert b"<svg" in contents[0][2]
    with pytest.raises(FedloraError, match=r"--figures names 'eps', and figures are .* png, pdf"):
        parse_formats("png,eps")


def test_tables_escape_what_latex_and_markdown_take_for_their_own():
    header, rows = ("strategy", "metric"), [("a_b & c%|<i>", "0.9 ± 0.1"), ("x\\y", "1")]
    latex, markdown = latex_table(header, rows), markdown_table(header, rows)
    assert r"a\_b \& c\%|<i> & 0.9 $\pm$ 0.1 \\" in latex
    assert r"x\textbackslash{}y & 1 \\" in latex and latex.count(r"\midrule") == 1
    assert markdown.splitlines()[2] == r"| a\_b & c%\|\<i\> | 0.9 ± 0.1 |"
    assert markdown.splitlines()[1] == "| :--- | ---: |"


def test_an_interval_takes_two_seeds_and_ends_where_the_metric_ends():
    alone = interval([0.98], LIMITS["accuracy"])
    assert not alone.known and _mean_text(alone, 3) == "0.980"
    values = [0.9, 1.0, 0.99]
    found, free = interval(values, LIMITS["accuracy"]), interval(values)
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert math.isclose(free.high, high) and free.high > 1 == found.high
    assert math.isclose(found.low, low) and math.isclose(free.low, low)
    assert _mean_text(found, 3) == f"0.963 +0.037 -{found.mean - low:.3f}"
    assert interval([1.0, 1.1], LIMITS["perplexity"]).low == 1.0
    own = {"strategy": "s", "snr_db": 0.0, "reward": 1.0, "adapter_bits": 1e6, "late": 0}
    rows = [own | {"seed": k, "metric": m, "mean_rank": 2.0} for k, m in enumerate(values)]
    [cells] = means_rows(rows, MetricText("accuracy"))
    assert cells[4].startswith("0.963 +0.037") and cells[3] == "1.000 ± 0.000"
