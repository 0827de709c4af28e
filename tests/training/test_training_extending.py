"""Every sample in docs/extending.md runs, and every place that it names is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from support.federation import Federation, scenario

from fedlora.registry import _KEYS, add_plugin_folder, names

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_samples_of_the_page_pass_the_checks_that_they_name():
    space: dict[str, object] = {}
    for sample in SAMPLES:
        exec(compile(sample, "docs/extending.md", "exec"), space)
    assert {"Halves", "NearMedian", "LongestAbsent", "Median", "Tunnels"} <= space.keys()
    assert {name for name in space if name.startswith("check_")} == {
        *("check_codec", "check_average", "check_channel", "check_task", "check_family"),
        *("check_scheduler", "check_predictor"),
    }


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(fedlora(?:\.\w+){2,})`", PAGE))))
def test_what_the_page_names_is_there(path):
    module, name = path.rsplit(".", 1)
    assert hasattr(import_module(module), name)


def test_every_kind_of_plug_in_has_its_row():
    groups = re.findall(r"\| `fedlora\.(\w+)` \|", PAGE)
    assert {*_KEYS, "codecs", "families", "commands"} == set(groups)
    assert all(names(group) for group in groups if group != "mechanisms")  # of others alone


def test_its_codec_and_average_train_from_a_folder_of_their_own(tiny, records, tmp_path):
    (tmp_path / "samples.py").write_text("\n".join(s for s in SAMPLES if "class " in s))
    add_plugin_folder(str(tmp_path))
    clients = [
        "train.rounds=1",
        "train.steps=2",
        "federation.clients=3",
        "robust.average=samples:NearMedian",
        "robust.hostile=1",
    ]
    named = [f"link.{way}=samples:Halves" for way in ("activation", "representation", "gradient")]
    exact = Federation(scenario(tiny["gpt2"], records, *clients)).run()
    coded = Federation(scenario(tiny["gpt2"], records, *clients, *named)).run()
    one, other = (own.recorder.rounds[-1]["loss"] for own in (exact, coded))
    assert one != other and abs(one - other) < 1e-2
    bits = [own.server.air.ledger.totals()["bits"]["up"]["gradient"] for own in (exact, coded)]
    assert 0.5 < bits[1] / bits[0] < 0.7
