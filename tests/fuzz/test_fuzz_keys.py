"""Every key of a scenario is drawn, or its reason is given why it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from fedlora.config import Scenario, load_scenario, scenario_from_toml
from fedlora.errors import FedloraError
from fedlora.registry import names
from fedlora.split import Checkpoint, find_family
from simulations.fuzz.case import keep_case, to_toml, write_case
from simulations.fuzz.drawing import BASE
from simulations.fuzz.keys import LEFT_OUT, draw_case
from simulations.fuzz.models import kinds, make_model

CASES = [draw_case(number) for number in range(4000)]


def scenario_keys(section: Any = None, prefix: str = "") -> Iterator[str]:
    section = Scenario() if section is None else section
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from scenario_keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def drawn() -> set[str]:
    """Return the keys that any case sets; options count as their table."""
    found = {key for case in CASES for key in case if not key.startswith("_")}
    return {
        key.partition(".options.")[0] + ".options" if ".options." in key else key for key in found
    }


def test_every_key_is_drawn_or_left_out_for_a_reason():
    missing = sorted(set(scenario_keys()) - drawn() - LEFT_OUT.keys())
    assert not missing, (
        f"say in simulations/fuzz/keys.py how {', '.join(missing)} is drawn, or in LEFT_OUT why not"
    )


def test_no_key_is_drawn_or_left_out_that_there_is_not_and_none_is_both():
    known = set(scenario_keys())
    assert not sorted(drawn() - known), "the fuzzer draws keys that the configuration does not have"
    assert not sorted(LEFT_OUT.keys() - known), (
        "LEFT_OUT of simulations/fuzz/keys.py is out of date"
    )
    assert not sorted(LEFT_OUT.keys() & drawn()), "LEFT_OUT names keys that are drawn"
    assert all(LEFT_OUT.values())


def test_a_key_that_is_new_is_asked_for(monkeypatch):
    """As where a later change adds one and says nothing here."""
    monkeypatch.delitem(LEFT_OUT, "link.give_up_s")
    with pytest.raises(AssertionError, match=r"keys\.py how link\.give_up_s is drawn, or in LEFT"):
        test_every_key_is_drawn_or_left_out_for_a_reason()


def test_every_choice_of_a_plug_in_is_drawn():
    for key, kind in (
        *(("ranks.strategy", "strategies"), ("robust.average", "averages")),
        *(("channel.schedule.scheduler", "schedulers"), ("link.gradient", "codecs")),
        *(("_model", "families"), ("task.kind", "tasks")),
    ):
        drawn = {case.get(key, BASE.get(key)) for case in CASES} | {"forecast"}  # see LEFT_OUT
        missing = set(names(kind)) - drawn
        assert not missing, f"say in simulations/fuzz how {key} = {sorted(missing)[0]} is drawn"


def test_a_case_follows_from_its_number():
    assert repr([draw_case(number) for number in range(300)]) == repr(CASES[:300])
    assert len({str(case) for case in CASES}) > 3900


@pytest.mark.parametrize("kind", kinds())
def test_a_tiny_model_of_every_architecture_can_be_made(kind, assets):
    folder = make_model(kind, assets / "models" / kind)
    assert find_family(Checkpoint(folder)) is not None


def test_a_written_case_is_the_scenario_that_was_drawn(tmp_path, assets):
    read = 0
    for number in range(60):
        case = draw_case(number)
        path = write_case(case | {"_start": None}, tmp_path / str(number), assets)
        try:
            scenario = load_scenario(path)
        except FedloraError:
            continue
        read += 1
        for key, value in case.items():
            if key.startswith("_") or ".options." in key or key == "lora.targets":
                continue
            own: Any = scenario
            for part in key.split("."):
                own = getattr(own, part)
            assert own == (tuple(value) if isinstance(value, list) else value), key
    assert read > 40


def test_a_kept_case_holds_all_that_it_needs(tmp_path):
    case = dict(BASE) | {"_model": "gpt2", "_start": 1, "task.kind": "causal_lm", "seed": 0}
    path = keep_case(case, tmp_path / "kept", tmp_path / "assets")
    (tmp_path / "assets").rename(tmp_path / "gone")
    scenario = load_scenario(path)
    for place in (scenario.model.path, scenario.lora.start, scenario.data.train):
        assert place.startswith(str(tmp_path / "kept"))


@pytest.mark.parametrize(
    "value", [True, 1, -0.5, float("nan"), float("-inf"), 'a\n"b', [1, "x"], {"a": {"b": []}}]
)
def test_values_are_written_as_toml(value):
    scenario = scenario_from_toml(f"ranks.options.x = {to_toml(value)}")
    assert repr(scenario.ranks.options["x"]) == repr(value)
