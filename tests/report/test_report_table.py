"""The tables say what the summary says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedlora.report import (
    MetricText,
    bits_column,
    bits_text,
    bytes_text,
    number_text,
    print_result,
    result_rows,
    seconds_text,
)
from fedlora.report.plots import client_metric, learning, quality_over_bits
from fedlora.report.records import client_totals
from fedlora.report.rows import client_table, headline
from fedlora.report.table import clients_table, result_table


def printed(renderable: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_result_table_holds_the_figures_with_units(finished):
    text = printed(result_table(finished.read_summary()))
    assert "0.725 → 0.923" in text
    assert "↑ higher is better" in text
    assert "252 Mbit" in text
    assert "7.94" in text
    assert "replace-one" in text


def test_bits_a_sample_are_told_beside_the_raw_cut_and_without_adapters():
    bits = {
        "up": {"activation": 300, "gradient": 100, "head": 50, "control": 50},
        "down": {"representation": 400, "adapter": 9000, "head": 60, "control": 40},
    }
    rows = [
        row
        for group in result_rows({"bits": bits, "raw_bits": 50_000, "samples": 4})
        for row in group
    ]
    (found,) = [row for row in rows if row[0] == "bits a sample"]
    assert found[1] == bits_text(1000 / 4)
    assert found[2].startswith("2.0% of fp32 each way")
    assert not [row for row in result_rows({"bits": bits})[2] if row[0] == "bits a sample"]


def test_table_says_when_there_is_no_privacy(make_run, make_rounds):
    folder = make_run(make_rounds(rounds=1), privacy=None)
    assert "no differential privacy" in printed(result_table(folder.read_summary()))


def test_matrices_in_fewer_bits_are_told_in_the_table():
    named = {form: str(result_rows({"weights": form})) for form in ("fp32", "nf4")}
    assert "frozen matrices" not in named["fp32"]
    assert "('frozen matrices', 'nf4', " in named["nf4"]


def test_tables_fit_80_columns_without_cutting_a_value(finished):
    text = printed(clients_table(finished.read_metrics(), metric_name="perplexity"))
    assert "…" not in text + printed(result_table(finished.read_summary()))
    for client in ("client-0", "client-7"):
        assert client in text


def test_client_totals_are_those_of_the_rounds(make_rounds):
    rounds = make_rounds()
    by_client = {item.client: item for item in client_totals(rounds)}
    for client, item in by_client.items():
        records = [r["clients"][client] for r in rounds]
        assert item.bits_up == sum(r["bits_up"] for r in records)
        assert item.deliveries == sum(r["delivered"] for r in records)
        assert item.deliveries_due == len(rounds)
        assert item.metric == records[-1]["metric"]
        assert item.snr_db == pytest.approx(sum(r["snr_db"] for r in records) / len(records))
    assert by_client["client-5"].rounds_lost == 1


def test_clients_are_in_natural_order_and_the_rest_is_counted(make_rounds):
    rounds = make_rounds(rounds=1, clients=12)
    assert [t.client for t in client_totals(rounds)] == [f"client-{k}" for k in range(12)]
    assert "and 9 more in metrics.jsonl" in printed(clients_table(rounds, limit=3))


def test_columns_without_a_value_are_left_out():
    text = printed(clients_table([{"round": 1, "clients": {"a": {"rows": 3, "metric": 0.5}}}]))
    assert "SNR" not in text
    assert "epsilon" not in text


def test_statistics_of_the_text_are_the_pages_and_not_the_terminals(make_rounds):
    rounds = make_rounds(rounds=2, clients=3)
    told = {"token_surprisal": 9.87, "type_token_ratio": 0.7, "mean_length": 13.2}
    rounds[0]["clients"]["client-1"]["statistics"] = told
    rounds[0]["clients"]["client-2"]["statistics"] = "torn"
    header, rows = client_table(client_totals(rounds), "accuracy", wide=True)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert columns["surprisal\nbits"] == ("–", "9.9", "–")
    assert columns["types a\ntoken"] == ("–", "0.70", "–")
    assert columns["tokens\na row"] == ("–", "13.2", "–")
    assert "tokens\na word" not in columns
    narrow, _ = client_table(client_totals(rounds), "accuracy", wide=False)
    assert not set(narrow) & {"surprisal\nbits", "types a\ntoken", "tokens\na row"}


def test_without_clients_there_is_no_client_table():
    assert clients_table([{"round": 1}]) is None


def test_headline_of_a_run_with_noise_says_who_may_let_a_metric_be_told():
    summary = {"metric": None, "rounds": 3, "clients": 3, "privacy": {"epsilon": 8.0}}
    assert headline(summary).startswith("No held-out metric was told after 3 rounds with 3 clients")
    assert "privacy-report" in headline(summary)


NMSE = {
    "metric_name": "nmse",
    "metric": 0.05,
    "metric_before": 0.1,
    "higher_is_better": False,
    "metrics": {"nmse": 0.05, "nmse_mean": 0.01, "rmse": 0.5, "loss": 0.2},
    "rounds": 2,
    "clients": 10,
}


def test_nmse_is_told_in_db_wherever_a_run_is_told():
    assert headline(NMSE) == (
        "NMSE -13.01 dB on held-out data after 2 rounds with 10 clients, 3.01 dB better than the "
        "same head on the frozen backbone (-10.00 dB)."
    )
    rows = {name: (value, remark) for name, value, remark in result_rows(NMSE)[0]}
    assert rows["NMSE"] == ("-10.00 → -13.01 dB", "-3.01 dB, ↓ lower is better")
    assert rows["NMSE, mean of ratios"][0] == "-20.00 dB" and rows["RMSE"][0] == "0.500"
    rounds = [
        {"round": r, "metric": 0.1**r, "metric_name": "nmse", "higher_is_better": False}
        | {"loss": 0.2, "bits": {"up": {"activation": 100}, "down": {}}}
        | {"clients": {str(c): {"metric": 0.1**r, "rows": 3} for c in range(4)}}
        for r in (1, 2)
    ]
    header, cells = client_table(client_totals(rounds), "nmse", wide=False)
    assert header[1] == "NMSE\ndB" and {row[1] for row in cells} == {"-20.00"}
    for figure in (learning(rounds, metric_before=0.1), quality_over_bits(rounds)):
        left, right = figure.axes
        assert left.get_ylabel() == "NMSE in dB, held out" and left.get_title("left") == "NMSE ↓"
        assert list(left.lines[0].get_ydata()) == pytest.approx([-10, -20])
        assert "nats" not in right.get_ylabel()
    assert client_metric(rounds).axes[0].get_xlabel() == "NMSE in dB, held out"


def test_a_metric_of_one_s_own_and_no_error_at_all_are_told_too():
    assert MetricText("my_score").title == "My score"
    assert MetricText("my_score").text(0.25) == "0.250"
    assert MetricText("nmse").text(0.0) == "-inf dB" and MetricText("nmse").text(None) == "–"
    assert headline(NMSE | {"metric": 0.0}).startswith("NMSE -inf dB on held-out data")
    assert "the same as" in headline(NMSE | {"metric": 0.0, "metric_before": 0.0})


@pytest.mark.parametrize(
    ("metric", "before", "higher", "words"),
    [
        (0.9, 0.7, True, "0.200 better than"),
        (0.6, 0.7, True, "0.100 worse than"),
        (4.0, 9.5, False, "5.500 better than"),
        (0.7, 0.7, True, "the same as"),
        (0.9, None, True, "with 8 clients."),
        (None, 0.7, True, "No evaluation was reached after 5 rounds"),
    ],
)
def test_headline_says_better_or_worse_in_the_metrics_own_sense(metric, before, higher, words):
    summary = {
        "metric_name": "score",
        "metric": metric,
        "metric_before": before,
        "higher_is_better": higher,
        "rounds": 5,
        "clients": 8,
    }
    assert words in headline(summary)


def test_print_result_names_folder_and_survives_a_missing_summary(finished):
    console = Console(file=io.StringIO(), width=80)
    print_result(finished, console)
    assert str(finished.path) in console.file.getvalue()
    finished.summary.unlink()
    print_result(finished, console)
    assert "no summary" in console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bits_text(0), "0 bit"),
        (bits_text(999), "999 bit"),
        (bits_text(1234), "1.23 kbit"),
        (bits_text(999_999), "1.00 Mbit"),
        (bits_text(12_345_678), "12.3 Mbit"),
        (bits_text(5.4e9), "5.40 Gbit"),
        (bytes_text(640 << 20), "640 MiB"),
        (seconds_text(0.348), "0.35 s"),
        (seconds_text(59.97), "1 min 00 s"),
        (seconds_text(3599.7), "1 h 00 min"),
        (seconds_text(185), "3 min 05 s"),
        (number_text(0.91249), "0.912"),
        (number_text(1234.56), "1,234.6"),
        (number_text(None), "–"),
    ],
)
def test_figures_carry_units(text, expected):
    assert text == expected


def test_a_sum_does_not_take_the_digits_of_what_it_is_of():
    clients = [154.1e6, 143.3e6]
    assert bits_column("up", [*clients, 1218.4e6]) == ("up\nMbit", ["154.1", "143.3", "1,218.4"])
    assert bits_column("up", [12.5e6, 0.9e6, 13.4e6]) == ("up\nMbit", ["12.5", "0.9", "13.4"])
    assert bits_column("up", [2.0, 3e9]) == ("up\nGbit", ["0.0", "3.0"])  # too far apart
    assert bits_column("up", [0.0, 0.0])[1] == ["–", "–"]
