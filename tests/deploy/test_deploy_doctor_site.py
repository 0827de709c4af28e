"""``fedlora doctor`` on a site: its key, its node configuration, its data, each with the mend."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedlora.commands.deploy.doctor_site import examine_key, examine_node
from fedlora.launch.keys import write_keys

DECODER = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"


def mends(findings) -> dict[str, str]:
    return {finding.what: finding.mend for finding in findings if finding.mend}


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder, ["host"], 1)
    return folder / "node0"


def test_a_nodes_key_needs_no_mending_and_shows_the_fingerprint_that_ssh_keygen_shows(key):
    [finding] = examine_key(key)
    assert finding.mend == "" and "secp384r1" in finding.found
    shown = subprocess.run(
        ["ssh-keygen", "-lf", key], capture_output=True, text=True, check=False
    ).stdout
    if shown:
        assert shown.split()[1] in finding.found


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (lambda p: p.unlink(), "copy this site's key anew"),
        (lambda p: p.write_bytes(p.with_suffix(".pub").read_bytes()), "name the private one"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "copy this site's key anew"),
        (lambda p: p.write_text("-----BEGIN NOTHING-----"), "copy this site's key anew"),
        (lambda p: p.chmod(0o640), "chmod 600"),
    ],
)
def test_a_key_that_does_not_serve_is_told_with_the_mend(key, tmp_path, spoil, mend):
    own = tmp_path / "node0"
    for suffix in ("", ".pub"):
        own.with_suffix(suffix).write_bytes(key.with_suffix(suffix).read_bytes())
    own.chmod(0o600)
    assert mends(examine_key(own)) == {}
    spoil(own)
    assert mend in mends(examine_key(own))["node key"]


def config(tmp_path: Path, rows: str, **keys: str) -> str:
    """Write a site's data and node configuration; return the configuration's path."""
    (tmp_path / "own.csv").write_text(rows)
    own = {"data": str(tmp_path / "own.csv"), "model": str(DECODER)}
    own |= {"state": str(tmp_path / "states"), "privacy-ledger": str(tmp_path / "ledger")}
    own |= {name: value.format(here=tmp_path) for name, value in keys.items()}
    lines = [f"{name} = '{value}'" for name, value in own.items() if value]
    (tmp_path / "node.toml").write_text("\n".join(["partition-id = 0", *lines]))
    return str(tmp_path / "node.toml")


ROWS = "text,intent\nhello you,greet\nbye you,part\ngood day,greet\n"
NAMED = {"text": "text", "label": "intent"}


def test_a_site_that_is_whole_shows_rows_columns_and_labels(tmp_path):
    findings = list(examine_node(config(tmp_path, ROWS, **NAMED, classes="greet,part")))
    found = {finding.what: finding.found for finding in findings}
    assert mends(findings) == {}
    assert found["data"] == "3 records; columns 'text', 'intent'"
    assert found["data: labels"] == "2: 'greet' 2, 'part' 1"
    assert "whole model" in found["model"] and str(tmp_path / "states") in found["state folder"]


@pytest.mark.parametrize(
    ("rows", "keys", "what", "mend"),
    [
        (ROWS, {"label": "intend"}, "data", "did you mean 'intent'?"),
        (ROWS, {"data": "/nowhere/own.csv"}, "data", "/nowhere"),
        ("text,intent\n", NAMED, "data", "name a file with some"),
        (ROWS + "late,\n", NAMED, "data", "mend or remove"),
        (ROWS, {**NAMED, "classes": "greet,leave"}, "data: labels", "mend 'part'"),
        ("text,intent\na,x\nb,x\n", NAMED, "data: labels", "one class"),
        (ROWS, {"privacy-epsilon": "2"}, "columns", "set text, and label"),
        (ROWS, {"data": ""}, "data", "set data to this device's file"),
        (ROWS, {"labels": "intent"}, "node configuration", "did you mean label?"),
        (ROWS, {"state": "{here}/own.csv/states"}, "state folder", "another place"),
        (ROWS, {"model": "/nowhere/package"}, "model", "/nowhere"),
    ],
)
def test_what_a_device_would_refuse_later_is_told_with_the_mend(tmp_path, rows, keys, what, mend):
    found = {
        f.what: f"{f.found} {f.mend}"
        for f in examine_node(config(tmp_path, rows, **keys))
        if f.mend
    }
    assert list(found) == [what], found
    assert mend in found[what]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("partition-id=0 privacy-epsilon = 1", "write key=value without blanks"),
        ("/nowhere/node.toml", "name a file that is there"),
        ("partition-id=zero", "texts in quotes"),
    ],
)
def test_a_configuration_that_flower_would_not_hand_over_whole_is_told(text, mend):
    assert mend in mends(examine_node(text))["node configuration"]
