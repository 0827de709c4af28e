"""Pages with measured figures name the commands that repeat them; here those lists are walked.

Each command is parsed by what it calls, so that a renamed option, module, scenario, experiment or
test is found; and of each section with figures a cheap cell is repeated, here or by the test that
``CELLS`` names.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from support import cheap_cells as cheap
from support.house import ROOT
from support.pages import PAGES, sections, words_of

from fedlora.cli import app
from fedlora.commands.keys import scenario_keys
from fedlora.scenarios import scenario_names
from fedlora.verbs import add_all_verbs
from simulations.bench.context import Settings
from simulations.bench.experiments import experiments

KEYS = {key.name for key in scenario_keys()}
EXPERIMENTS = [experiment.name for experiment in experiments(Settings())]
SECTIONS = {s.name: s for page in PAGES if page.name != "results.md" for s in sections(page)}
"""What docs/results.md claims is walked by tests/compare/test_results_page.py."""

SETTINGS = {
    **dict.fromkeys([("README.md", "What is inside"), ("conversations.md", "Model")], "sizes"),
    ("architecture.md", "When a stream breaks, or a client is late"): "limits of tests",
    ("channels.md", "Recordings"): "what files hold",
    ("channels.md", "Rate"): "numbers of standards",
    ("data.md", "By `fedlora data prepare`"): "sizes and versions",
    ("deploy.md", "When something dies"): "defaults",
    ("scenarios.md", "Shipped"): "sizes and settings",
    ("scenarios.md", "Hostile clients"): "settings",
    ("tasks.md", "Forecasts"): "settings",
}
"""Sections whose figures nobody measured, and what they are."""


READERS = ("ArgumentParser", "typer.run", "bench.engines.two_engines import report")
"""What stands in a module that reads its command line."""


class Parsed(BaseException):
    """A module has read its command line, and need not go on."""


@pytest.fixture(scope="module")
def verbs() -> dict[str, click.Command]:
    add_all_verbs(app)
    return typer.main.get_command(app).commands


def fedlora_parses(words: list[str], verbs: dict[str, click.Command]) -> None:
    verb, arguments = words[1], words[2:]
    assert verb in verbs, words
    try:
        given = verbs[verb].make_context(verb, arguments).params
    except click.MissingParameter:
        assert not arguments, words  # the verb by its name alone
        return
    scenario = given.get("scenario") or ""
    if scenario.islower() and "/" not in scenario and not scenario.endswith(".toml"):
        assert scenario in scenario_names(), words
    for setting in given.get("set_") or []:
        name = setting.partition("=")[0]
        assert name in KEYS or ".options." in name, words
    if verb == "bench":
        assert any(name.startswith(given["only"]) for name in EXPERIMENTS), words


# a module with one of these reads its command line; any other takes bare words
READERS = ("ArgumentParser", "typer.run", "bench.engines.two_engines import report")


def module_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = words[2], words[3:]
    if module == "pytest":
        paths = [word for word in arguments if word.startswith("tests/")]
        assert paths and all((ROOT / path.partition("::")[0]).exists() for path in paths), words
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, words
    source = Path(spec.origin).read_text(encoding="utf-8")
    if not any(reader in source for reader in READERS):
        assert all(word in source for word in arguments), words
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object) -> None:
        parse(self, *given)
        raise Parsed

    def stop_typer(main: Callable[..., None]) -> None:
        single = typer.Typer(add_completion=False)
        single.command()(main)
        typer.main.get_command(single).make_context(module, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(typer, "run", stop_typer)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_path(spec.origin, run_name="__main__")


def parses(command: str, verbs: dict[str, click.Command], patch: pytest.MonkeyPatch) -> None:
    """Hand a command to what it calls, as far as its options are read."""
    words = words_of(command)
    if words[0] == "fedlora":
        fedlora_parses(words, verbs)
    elif words[:2] == ["python", "-m"]:
        module_parses(words, patch)
    else:
        assert words[0] == "make", words
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, words


BENCH = "tests/bench/test_bench_command.py::test_quick_writes_every_figure_finite_and_with_its_unit"
AUDIT = "tests/private/test_private_audit.py::test_with_noise_no_label_attack_passes_its_bound"

CELLS: dict[tuple[str, str], cheap.Cell | str] = {
    ("README.md", "fedlora"): "tests/api/test_api_front_door.py::"
    "test_a_run_in_this_process_trains_what_a_federation_of_its_scenario_does",
    ("architecture.md", "Equal to unsplit training"): "tests/training/"
    "test_training_equals_unsplit.py::test_losses_and_factors_equal_unsplit_training",
    ("channels.md", "What clients report"): "tests/channel/test_channel_predict.py::"
    "test_autoregression_foretells_fading_better_than_the_last_value",
    ("channels.md", "Who takes part"): "tests/participation/test_participation.py::"
    "test_a_run_has_the_participants_that_were_asked_for",
    ("scenarios.md", "Rounds that are rehearsed"): "tests/training/test_training_forecast.py::"
    "test_a_rehearsal_tells_what_is_left_of_representations_within_two_percent",
    ("csi.md", "Channel prediction"): "tests/csi/test_csi.py::"
    "test_a_few_steps_of_the_scenario_learn_over_sites_with_their_own_channels",
    ("csi.md", "Bytes on the air"): cheap.bytes_of_the_case_study,
    ("csi.md", "The case study"): cheap.rows_of_the_case_study("cdl"),
    ("csi.md", "What federation wins"): "tests/csi/test_csi_page.py::"
    "test_the_page_says_what_the_committed_rows_say",
    ("csi.md", "The second setting"): cheap.rows_of_the_case_study("sampled-2.35-ms"),
    ("deploy.md", "Measured links"): "tests/link/test_link_probe.py::"
    "test_a_link_of_10_megabits_with_50_ms_delay_is_measured_within_a_fifth",
    ("generation.md", "Fewer exchanges"): BENCH,
    ("generation.md", "Few bits"): BENCH,
    ("large-models.md", "Predicted"): cheap.memory_of_a_shape,
    ("large-models.md", "Measured"): "tests/deploy/test_deploy_rehearse.py::"
    "test_a_killed_device_comes_back_and_nothing_is_left_running",
    ("performance.md", "Bits at the cut"): cheap.committed_points,
    ("performance.md", "Blocks in other places"): "tests/server/test_engine_placement.py::"
    "test_gradients_equal_the_undivided_servers_bit_for_bit",
    ("performance.md", "The first minute"): "tests/cli/test_cli_verbs.py::"
    "test_help_imports_nothing_heavy",
    ("performance.md", "Frozen matrices laid out beforehand"): "tests/training/"
    "test_training_prepacked.py::test_a_run_differs_from_one_with_plain_matrices_by_rounding",
    ("performance.md", "Two lanes"): "tests/server/test_engine_lanes.py::"
    "test_outputs_and_gradients_are_those_of_one_lane",
    ("performance.md", "What pooling leaves out"): "tests/server/test_engine_pooled.py::"
    "test_the_last_block_computes_its_mlp_at_one_token_of_each_row",
    ("privacy.md", "What epsilon says"): cheap.what_epsilon_says,
    ("privacy.md", "What epsilon does not cover"): AUDIT,
    ("privacy.md", "Everything that leaves a device"): cheap.noise_of_counts,
    ("privacy.md", "Where the noise goes"): "tests/privacy/test_privacy_cascade.py::"
    "test_prediction_meets_measured_noise_in_every_factor_of_a_transformer",
    ("privacy.md", "Measured"): cheap.means_are_those_of_the_seeds,
    ("privacy.md", "Testing the promise"): AUDIT,
    ("quickstart.md", "Limits"): cheap.bits_of_activations,
    ("scenarios.md", "Few bits at the cut"): "tests/link/test_link_entropy.py::"
    "test_rows_of_many_sizes_take_fewer_bits_than_with_a_scale_each_at_one_error",
    ("security.md", "A client that sends wrong gradients"): "tests/robust/"
    "test_robust_federation.py::test_flipped_gradients_ruin_the_mean_and_not_the_median",
    ("strategies.md", "What a strategy is given"): cheap.dialects,
    **{
        ("performance.md", title): BENCH
        for title in (
            *("Speed and memory", "Real text", "Blocks that nobody trains", "Overlap"),
            *("Frozen blocks in fewer bits", "A client's process", "Generation"),
            *("Many clients, and the stream by itself", "Robust averages"),
        )
    },
}
"""What repeats a cheap cell of a section's figures: a function, or a test of its own."""

ONCE = {
    ("performance.md", "What made the difference"),
    ("privacy.md", "Noise that follows the channel"),
}
"""Sections that say that no command repeats their figures."""


def test_each_section_with_figures_is_walked_or_says_what_they_are():
    measured = {name for name, section in SECTIONS.items() if len(section.figures) > 2}
    assert measured <= {*CELLS, *SETTINGS, *ONCE}, measured - {*CELLS, *SETTINGS, *ONCE}
    assert {*CELLS, *SETTINGS, *ONCE} <= set(SECTIONS)
    assert not set(SETTINGS) & {*CELLS, *ONCE}
    for name in ONCE:
        assert "no command repeats" in cheap.one_line(SECTIONS[name].text), name


@pytest.mark.parametrize("name", CELLS, ids=": ".join)
def test_a_section_with_figures_names_commands_that_there_are(name, verbs, monkeypatch):
    commands = SECTIONS[name].commands
    assert commands, f"{name} has figures, and names no command that repeats them"
    for command in commands:
        parses(command, verbs, monkeypatch)


@pytest.mark.parametrize(
    "name", [n for n, cell in CELLS.items() if not isinstance(cell, str)], ids=": ".join
)
def test_a_cheap_cell_comes_out_as_on_the_page(name, tmp_path):
    cell = CELLS[name]
    assert not isinstance(cell, str)
    cell(SECTIONS[name], tmp_path)


@pytest.mark.slow
def test_what_other_codecs_take_comes_out_as_on_the_page(tmp_path):
    cheap.bits_of_other_codecs(SECTIONS["quickstart.md", "Limits"], tmp_path)


def test_cells_that_other_tests_repeat_are_there():
    for cell in CELLS.values():
        if isinstance(cell, str):
            path, test = cell.split("::")
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), cell


@pytest.mark.parametrize(
    "command",
    [
        "fedlora bench --only sped",
        "fedlora plan quickstart --set link.no_such_key=1",
        "fedlora csi study --ot there",
        "python -m simulations.bench.engines.pooled sst2-minilm --sett task.pool=cls",
        "python -m simulations.bench.bits.frontier --uot plot.png",
        "python -m simulations.bench.no_such_module",
        "python -m pytest tests/no_such_folder",
        "make no_such_target",
    ],
)
def test_a_command_that_is_not_there_is_found(command, verbs, monkeypatch):
    with pytest.raises((AssertionError, click.ClickException, SystemExit)):
        parses(command, verbs, monkeypatch)
