"""Cheap cells: each repeats some of the figures of a section, and finds them on its page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import norm

from clients.build import load_parts
from clients.simulated_data import SimulatedData
from clients.text_statistics import text_statistics
from fedlora.commands.check import figures
from fedlora.config import Scenario, load_scenario, with_overrides
from fedlora.planning import forecast
from fedlora.privacy.accounting import calibrate_sigma, exact_epsilon, rdp_epsilon
from fedlora.privacy.accounting.rdp import rho
from fedlora.scenarios import find_scenario
from fedlora.split import Checkpoint, model_folder
from simulations.bench.bits import frontier
from simulations.csi.study import study_folder, table_rows
from simulations.csi.trial import Row
from simulations.shapes import write_shape
from support.house import ROOT
from support.pages import Section

DELTA = 1e-5
Cell = Callable[[Section, Path], None]


def one_line(text: str) -> str:
    return " ".join(text.split())


def what_epsilon_says(section: Section, tmp_path: Path) -> None:
    for cells in section.tables:
        if found := re.match(r"sigma (\d+\.\d+)", cells[0]):
            sigma = float(found[1])
            assert rdp_epsilon(rho(sigma), DELTA) == pytest.approx(float(cells[1]), rel=0.02)
            assert exact_epsilon(rho(sigma), DELTA) == pytest.approx(float(cells[2]), rel=0.01)
            assert norm.cdf(math.sqrt(2) / sigma) == pytest.approx(float(cells[3]), abs=2e-3)
        elif cells[0].isdigit():
            epsilon, told = float(cells[0]), [float(c.rstrip("%")) for c in cells[1:]]
            for classes, wrong, area in ((2, *told[:2]), (20, *told[2:4])):
                other = 1 / (math.exp(epsilon) + classes - 1)
                right = math.exp(epsilon) * other
                rest = 1 - right - other
                assert 100 * (1 - right) == pytest.approx(wrong, rel=0.02, abs=0.5)
                seen = right * (1 - other) + rest * right + right * other + rest**2 / 2
                assert seen == pytest.approx(area, abs=1e-3)
            sigma = calibrate_sigma(epsilon, DELTA, 1)
            assert norm.cdf(math.sqrt(2) / sigma) == pytest.approx(told[4], abs=1e-3)


def noise_of_counts(section: Section, tmp_path: Path) -> None:
    one, eight = (math.sqrt(2) * calibrate_sigma(epsilon, DELTA, 1) for epsilon in (1.0, 8.0))
    text = one_line(section.text)
    assert f"{eight:.1f} rows for one evaluation at epsilon 8, {one:.1f} at epsilon 1" in text


def means_are_those_of_the_seeds(section: Section, tmp_path: Path) -> None:
    found = 0
    for cells in section.tables:
        seeds = re.findall(r"\d\.\d{3}", cells[4]) if len(cells) > 4 else []
        if len(seeds) > 1:
            assert fmean(map(float, seeds)) == pytest.approx(float(cells[3]), abs=1.01e-3), cells
            found += 1
        elif len(cells) == 4 and (several := re.findall(r"\d\.\d{3}", cells[3]))[1:]:
            assert fmean(map(float, several)) == pytest.approx(float(cells[2]), abs=1.01e-3), cells
            found += 1
    assert found >= 15


def committed_points(section: Section, tmp_path: Path) -> None:
    text = one_line(section.text)
    points = {point.name: point for point in frontier.points(frontier.read(frontier.ROWS))}
    for name in ("tokens, entropy 4.7, 3.2", "rotated 8, entropy 4.7, 3.2"):
        assert f"{points[name].share:.2f}%" in text
        assert f"{fmean(points[name].lost):+.2f}%" in text


def planned(*settings: str) -> dict[str, int]:
    """Return the bits of a shipped scenario's training by way and kind."""
    scenario = with_overrides(find_scenario(settings[0]), list(settings[1:]))
    rows, _ = figures(scenario)
    assert rows is not None
    found = forecast(scenario, Checkpoint(model_folder(scenario.model.path)), rows)
    ways = found.totals["bits"].items()
    return {f"{way} {kind}": count for way, own in ways for kind, count in own.items()}


def bytes_of_the_case_study(section: Section, tmp_path: Path) -> None:
    scenario, rows = committed_study("cdl", tmp_path)
    steps = scenario.train.rounds * scenario.train.steps * scenario.federation.clients
    raw = 3072 * steps * scenario.train.batch_size
    split = [row for row in rows if (row.model, row.how, row.sites) == ("split", "federated", 10)]
    ratio = fmean(row.bytes for row in split) / raw
    assert f"**{ratio:.2f} times** that" in one_line(section.text)


def bits_of_activations(section: Section, tmp_path: Path) -> None:
    assert f"{planned_mbit()} Mbit by `fedlora plan quickstart`" in one_line(section.text)


def bits_of_other_codecs(section: Section, tmp_path: Path) -> None:
    text = one_line(section.text)
    assert f"{planned_mbit('link.activation=fp32')} as plain fp32" in text
    assert f"{planned_mbit('link.activation=int8')} with `--set link.activation=int8`" in text
    few = ["link.activation=rotated", "link.activation_bits=8"]
    shown = " ".join(f"--set {setting}" for setting in few)
    assert f"{planned_mbit(*few)} with `{shown}`" in text


def planned_mbit(*settings: str) -> int:
    """Return the Mbit of the activations of a quickstart."""
    return round(planned("quickstart", *settings)["up activation"] / 1e6)


def memory_of_a_shape(section: Section, tmp_path: Path) -> None:
    scenario = load_scenario(write_shape("1b", tmp_path / "1b", "bf16", hollow=True))
    _, sizes = figures(scenario)
    (row,) = (cells for cells in section.tables if cells[:2] == ["Llama-3.2-1B", "bf16"])
    told = [float(cell.strip("*").replace(",", "")) for cell in row[2:9]]
    found = [sizes.server_weights, sizes.server_adapters, sizes.server_activations, sizes.server]
    found += [sizes.device_weights, sizes.device_step, sizes.device]
    assert [n / 1e6 for n in found] == pytest.approx(told, abs=0.51)


def dialects(section: Section, tmp_path: Path) -> None:
    chosen = ["partition.kind=column", "partition.column=dialect"]
    scenario = with_overrides(find_scenario("quickstart"), chosen)
    data = SimulatedData(scenario, 8)
    parts = load_parts(scenario, data.labels)
    told = []
    for client in range(8):
        samples = parts.model.task.samples(data.rows_of(client)[0], parts.tokenizer, scenario.data)
        told.append(text_statistics(samples, parts.tokenizer).told())
    spans = {cells[0].strip("`"): cells[2] for cells in section.tables if len(cells) == 3}
    for name in told[0]:
        own = [float(statistics[name]) for statistics in told]
        assert list(map(float, spans[name].split(" to "))) == [min(own), max(own)]


def committed_study(folder: str, tmp_path: Path) -> tuple[Scenario, list[Row]]:
    """Return the scenario and the rows of a study of channel prediction."""
    kept = ROOT / "simulations" / "csi" / "results" / folder
    for name in ("scenario.toml", "trials.jsonl"):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    scenario = load_scenario(kept / "scenario.toml")
    study = study_folder(tmp_path, scenario)
    return scenario, [Row(**record) for record in study.results.records.values()]


def rows_of_the_case_study(folder: str) -> Cell:
    """Return what finds the means of a study's committed rows on its page."""

    def cell(section: Section, tmp_path: Path) -> None:
        _, rows = committed_study(folder, tmp_path)
        found = [(f"{nmse} dB", f"{ratios} dB") for _, _, nmse, ratios, *_ in table_rows(rows)]
        assert len(found) > 5
        for cells in found:
            assert any(set(cells) <= set(line) for line in section.tables), cells

    return cell
