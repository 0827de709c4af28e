"""An owner's keys are read whole or refused: no slip takes a limit away."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.owner import check_arrived
from clients.owner.typed import options_in
from clients.process import in_simulation
from fedlora.commands.keys import node_keys
from fedlora.config import NodeKeys, dashed
from fedlora.config.node_values import keys_in
from fedlora.errors import FedloraError

OWN = {"data": "own.csv", "text": "text", "label": "label", "model": "package"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"privacy-epsilom": 1}, "no key; did you mean privacy-epsilon?"),
        ({"privacy_epsilon": 1}, "did you mean privacy-epsilon?"),
        ({"Data": "x"}, "did you mean data?"),
        ({"zzz": 1}, "fedlora keys --node lists all"),
        ({"privacy-delta": 1e-5}, "no privacy-epsilon"),
        ({"privacy-epsilon": "one", **OWN}, "privacy-epsilon is 'one'; set a number"),
        ({"privacy-epsilon": True, **OWN}, "set a number"),
        ({"privacy-epsilon": "nan", **OWN}, "set a number"),
        ({"privacy-epsilon": 1, "data": "x"}, "but no model"),
        ({"privacy-epsilon": 1, "model": "x", "scenario-data": "true"}, "beside privacy-epsilon"),
        ({"data": "x", "scenario-data": "true"}, "a device has one of them"),
        ({"scenario-data": "perhaps"}, "set true or false"),
        ({"test": "x"}, "sets test but no data"),
        ({"holdout": 0.1}, "sets holdout but no data"),
        ({**OWN, "test": "x", "holdout": 0.1}, "set one of them"),
        ({**OWN, "holdout": 1}, "holdout is 1.0; set 0 to below 1"),
        ({**OWN, "label": "text"}, "would be sent as text"),
        ({**OWN, "data": ""}, "data is ''; set a text"),
        ({**OWN, "data": True}, "data is True; set a text"),
        ({**OWN, "pattern": 5}, "pattern is 5; set a text"),
        ({**OWN, "classes": "a,,b"}, "names separated by commas, each once"),
        ({**OWN, "classes": "a,a"}, "each once"),
        ({**OWN, "privacy-report": "yes"}, "set true, false or unprotected"),
        ({**OWN, "privacy-report-limit": 0}, "set 1 or more"),
        ({"idle-limit-s": 0}, "idle-limit-s is 0.0; set seconds above 0"),
        ({"idle-limit-s": "soon"}, "idle-limit-s is 'soon'; set seconds above 0"),
    ],
)
def test_a_slip_is_refused_with_its_value_and_the_mend(given: dict[str, Any], said: str) -> None:
    with pytest.raises(FedloraError, match=re.escape(said)):
        NodeKeys.read(given)


def test_flowers_own_keys_pass_and_numbers_may_be_text() -> None:
    keys = NodeKeys.read({"partition-id": 2, "num-partitions": 8, **OWN, "privacy-epsilon": "2"})
    assert keys.partition_id == 2 and keys.limit is not None and keys.limit.epsilon == 2.0
    assert keys.privacy_report == "false" and not keys.scenario_data


def test_every_key_is_documented_and_each_has_a_meaning() -> None:
    root = Path(__file__).parents[2]
    docs = "".join((root / "docs" / name).read_text() for name in ("deploy.md", "privacy.md"))
    for key in node_keys():
        assert len(key.meaning) > 10, key.name
        assert key.name == "num-partitions" or f"`{key.name}`" in docs, key.name
    assert {key.name for key in node_keys()} == set(map(dashed, NodeKeys.__dataclass_fields__))


def test_a_pair_that_was_typed_and_did_not_arrive_is_noticed() -> None:
    text = "partition-id=0 privacy-epsilon = 1 data=\"a = b\" label='x=y' idle-limit-s=5"
    names = ["partition-id", "privacy-epsilon", "data", "label", "idle-limit-s"]
    assert keys_in(text) == names and keys_in("/srv/a=b/node.toml") == []
    assert list(options_in(["flower-supernode", "--node-config", text])) == [text]
    assert list(options_in(["flower-supernode", f"--node-config={text}"])) == [text]
    check_arrived(names)  # nobody typed a node configuration for this process
    code = (
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', "
        "'from clients.owner.typed import check_arrived; check_arrived([\"data\"])']).returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--node-config", 'data="x" privacy-epsilon = 1'],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode != 0 and "--node-config names privacy-epsilon" in done.stderr


def test_whether_this_is_a_simulation_is_a_fact_of_the_process() -> None:
    assert not in_simulation({})
    assert not in_simulation({"partition-id": 0, "num-partitions": 2})
    sys.modules.setdefault("ray", sys.modules[__name__])  # as a message could not do
    try:
        if sys.modules["ray"] is sys.modules[__name__]:
            assert not in_simulation({"data": "own.csv"})
    finally:
        if sys.modules["ray"] is sys.modules[__name__]:
            del sys.modules["ray"]


def is_initialized() -> bool:
    """Stand for Ray's."""
    return True
