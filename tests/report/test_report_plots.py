"""Plots show the records they are given, and are left out where there is nothing to show."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.holdings import add_holdings

from fedlora.report import air_plots, plots
from fedlora.report.figure import literal, panels, save
from fedlora.report.gallery import GALLERY, write_plots

HOLDINGS = {"lights": {"a": 40, "b": 10}, "music": {"b": 30}}


def test_every_plot_is_a_png_with_something_on_it(finished):
    add_holdings(finished, HOLDINGS)
    written = write_plots(finished)
    assert {path.stem for path in written} == {plot.name for plot in GALLERY}
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


def test_learning_draws_the_metric_and_the_baseline(make_rounds):
    rounds = make_rounds()
    left, right = plots.learning(rounds, metric_before=0.725).axes
    metric, before = (line.get_ydata() for line in left.lines)
    assert list(metric) == [r["metric"] for r in rounds]
    assert set(before) == {0.725}
    assert list(right.lines[1].get_ydata()) == [r["loss"] for r in rounds]
    assert left.get_ylabel() == "accuracy, held out"


def test_rounds_without_evaluation_leave_no_point(make_rounds):
    rounds = make_rounds(rounds=4)
    rounds[1]["metric"] = None
    line = plots.learning(rounds).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 3, 4]


def test_traffic_stacks_reach_the_bits_of_the_round(make_rounds):
    rounds = make_rounds()
    figure = plots.traffic(rounds)
    for ax, way in zip(figure.axes, ("up", "down"), strict=True):
        assert ax.get_ylabel().startswith("Mbit")
        tops = [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]
        assert tops == pytest.approx([sum(r["bits"][way].values()) / 1e6 for r in rounds])


def test_quality_is_drawn_over_what_has_crossed_the_cut_without_adapters(make_rounds):
    rounds = make_rounds(rounds=3)
    rounds[1]["metric"] = None
    line = plots.quality_over_bits(rounds).axes[0].lines[0]
    assert list(line.get_ydata()) == [rounds[0]["metric"], rounds[2]["metric"]]
    one = (26_000_000 + 15_900_000 + 61_000 + 15_900_000 + 44_000) / 1e6
    assert list(line.get_xdata()) == pytest.approx([one, 3 * one])
    assert plots.quality_over_bits([{"round": 1, "metric": 0.5}]) is None


@pytest.mark.parametrize(
    ("higher", "best"), [(True, max), (False, min)], ids=["higher is better", "lower is better"]
)
def test_best_client_is_on_top(make_rounds, higher, best):
    rounds = make_rounds(rounds=2)
    for record in rounds:
        record["higher_is_better"] = higher
    ax = plots.client_metric(rounds).axes[0]
    values = {client: record["metric"] for client, record in rounds[-1]["clients"].items()}
    assert ax.get_yticklabels()[-1].get_text() == best(values, key=values.__getitem__)


def test_area_of_a_bubble_is_proportional_to_its_rows():
    bubbles = plots.holdings(HOLDINGS).axes[0].collections[0]
    area = dict(
        zip(map(tuple, bubbles.get_offsets().astype(int)), bubbles.get_sizes(), strict=True)
    )
    assert area[0, 0] / area[1, 0] == pytest.approx(4.0)
    assert set(area) == {(0, 0), (1, 0), (1, 1)}


def test_heat_map_holds_the_mean_rank_of_each_projection():
    rounds = [
        {"round": 1, "clients": {"a": {"ranks": [2, 4, 0]}, "b": {"ranks": [4, 8, 0]}}},
        {"round": 2, "clients": {"a": {"ranks": [6, 6, 3]}}},
    ]
    figure = air_plots.ranks(rounds, [(0, "q_proj"), (0, "up_proj"), (1, "up_proj")])
    grid = figure.axes[0].images[0].get_array()
    assert np.ma.filled(grid, np.nan) == pytest.approx(
        np.array([[4.0, 6.0], [np.nan, 1.0]]), nan_ok=True
    )


def test_channel_shows_every_client_by_name_or_their_median(make_rounds):
    few, many = make_rounds(clients=3), make_rounds(clients=30)
    named = air_plots.channel(few).axes[0].get_legend_handles_labels()[1]
    assert named == ["client-0", "client-1", "client-2"]
    median = air_plots.channel(many).axes[0].lines[-1].get_ydata()
    expected = [np.median([c["snr_db"] for c in r["clients"].values()]) for r in many]
    assert median == pytest.approx(expected)


def test_deliveries_show_who_was_late_and_who_was_sent_nothing(make_rounds):
    rounds = make_rounds(clients=3, rounds=2)
    states = {"client-0": (True, None), "client-1": (False, True), "client-2": (None, None)}
    for client, delivered in states.items():
        for record, state in zip(rounds, delivered, strict=True):
            record["clients"][client]["delivered"] = state
    (image,) = air_plots.deliveries(rounds).axes[0].images
    none_sent, in_time, late = 0, 1, 2
    assert image.get_array().tolist() == [
        [in_time, none_sent],
        [late, in_time],
        [none_sent, none_sent],
    ]
    for record in rounds:
        for client in record["clients"].values():
            client["delivered"] = None
    assert air_plots.deliveries(rounds) is None


def test_air_shows_the_energy_of_each_round_in_a_fitting_unit(make_rounds):
    rounds = make_rounds(rounds=2)
    assert len(air_plots.air_time(rounds).axes) == 1
    for record, joules in zip(rounds, (1500.0, 3000.0), strict=True):
        record["energy_joules"] = joules
    right = air_plots.air_time(rounds).axes[1]
    assert [bar.get_height() for bar in right.patches] == [1.5, 3.0]
    assert right.get_ylabel().startswith("kJ")


def test_measured_channel_without_snr_shows_its_rate(make_rounds):
    rounds = make_rounds(clients=2)
    for record in rounds:
        for client in record["clients"].values():
            client["snr_db"] = None
    left = air_plots.channel(rounds).axes[0]
    assert left.get_ylabel() == "downlink rate in Mbit/s"
    rates = [record["clients"]["client-0"]["rate_bps"] / 1e6 for record in rounds]
    assert left.lines[0].get_ydata() == pytest.approx(rates)


def test_channel_on_which_nothing_varies_is_left_out():
    client = {"snr_db": 10.0, "mean_rank": 8.0}
    rounds = [{"round": r, "clients": {"a": client, "b": client}} for r in (1, 2, 3)]
    assert air_plots.channel(rounds) is None


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    figure = plots.holdings({"$\\frac{$": {"$a$": 1}, "x" * 80: {"$a$": 2}})
    figure.savefig(tmp_path / "plot.png")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [r"\$a\$"]


def test_names_that_the_font_lacks_stay_apart_and_warn_of_nothing(recwarn, tmp_path):
    names = ["\u65e5\u672c", "\U0001f697 car", "gr\u00fcn", "a\x1b[31m"]
    drawn = ["U+65E5U+672C", "U+1F697 car", "gr\u00fcn", "aU+001B[31m"]
    assert literal(names) == drawn
    figure, (ax,) = panels()
    ax.set_xticks(range(4), literal(names))
    save(figure, tmp_path / "names.png", ("svg",))
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_plot_that_cannot_be_drawn_is_left_out_with_a_warning_that_names_it(
    finished, caplog, monkeypatch
):
    add_holdings(finished, {"on": {"client-0": 3}})

    def too_large(*_):
        raise ValueError("image size of 65536x65536 pixels is too large")

    monkeypatch.setattr(plots, "holdings", too_large)
    (finished.plots / "air.png").mkdir(parents=True)  # as good as a disk that fails
    names = {path.stem for path in write_plots(finished)}
    assert names == {plot.name for plot in GALLERY} - {"air", "holdings"}
    assert "the plot holdings is left out" in caplog.text
    assert "the plot air is left out" in caplog.text


@pytest.mark.parametrize("rounds", [[], [{"round": 1}], [{"round": 1, "clients": {"a": {}}}]])
def test_what_has_no_data_is_left_out(make_run, rounds):
    assert plots.learning(rounds) is None
    assert plots.client_metric(rounds) is None
    assert plots.traffic(rounds) is None
    assert air_plots.channel(rounds) is None
    assert air_plots.ranks(rounds, [(0, "q_proj")]) is None
    assert air_plots.air_time(rounds) is None
    assert plots.holdings({}) is None
    folder = make_run([])
    assert write_plots(folder) == []
    assert plots.holdings({"label": {"a": 0}}) is None


def test_drawing_leaves_no_global_state():
    program = (
        "import sys\n"
        "from fedlora.report import plots\n"
        "plots.holdings({'a': {'b': 1}}).savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
