"""``fedlora data``: what scenarios read is known by digest, and made of originals or refused."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlora.cli import app
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario, scenario_names
from fedlora.sources import _MAKE, SHARED, Original, Source, SourceFile, prepare, sources

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "data.md").read_text().split())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(name: str, content: bytes, *originals: Original) -> Source:
    own = Original(f"there/{name}", len(content), digest(content), lambda same: same)
    file = SourceFile(f"data/{name}", len(content), own.sha256, [own, *originals])
    return Source("own", "words", "https://example.org", "commit 1", "CC0", [file])


def test_all_that_shipped_scenarios_read_ships_or_installs_or_has_a_source_and_a_digest():
    known = {file.path for source in sources().values() for file in source.files}
    for name in scenario_names():
        scenario = find_scenario(name)
        assert f"`{name}`" in PAGE
        for path in filter(None, (scenario.data.train, scenario.data.test, scenario.model.path)):
            if path.startswith(SHARED):
                own = path.removeprefix(SHARED)
                assert any(Path(file).is_relative_to(own) for file in known), path
            elif path.startswith("package:simulations/"):
                assert (ROOT / path.removeprefix("package:")).exists()
            else:
                assert path.removeprefix("package:").removeprefix("hub:").split("/")[0] in PAGE


def test_the_page_has_every_source_and_the_digests_of_what_is_here():
    for source in sources().values():
        assert source.source in PAGE and source.version in PAGE and source.licence in PAGE
        for file in source.files:
            for sha256 in (file.sha256, *(original.sha256 for original in file.originals)):
                assert f"`{sha256}`" in PAGE
    rows = r"\| `([a-z/.-]+)`(?: \(in `(\S+)`\))? \| ([\d,]+) \| `(\w{64})` \|"
    for name, place, size, sha256 in re.findall(rows, PAGE):
        shipped = ROOT / (place or "simulations/quickstart") / name
        assert shipped.exists() or not place
        if shipped.exists():
            assert (shipped.stat().st_size, digest(shipped.read_bytes())) == (
                int(size.replace(",", "")),
                sha256,
            )


def test_an_original_is_found_by_its_content_wherever_it_lies(tmp_path):
    source = made("a.tsv", b"one\t1\n")
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "renamed.bin").write_bytes(b"one\t1\n")
    [(target, original)] = prepare(source, tmp_path / "from", tmp_path / "out")
    assert target.read_bytes() == b"one\t1\n" and original.name == "renamed.bin"
    assert prepare(source, tmp_path / "from", tmp_path / "out") == [(target, None)]


@pytest.mark.parametrize("content", [b"one\t2\n", b"one\t1\r\n", b""])
def test_a_changed_original_is_refused_with_both_digests_and_nothing_is_written(tmp_path, content):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.tsv").write_bytes(content)
    with pytest.raises(FedloraError) as refused:
        prepare(made("a.tsv", b"one\t1\n"), tmp_path / "from", tmp_path / "out")
    assert digest(content) in str(refused.value) and digest(b"one\t1\n") in str(refused.value)
    assert "https://example.org, commit 1" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_content_is_replaced_only_where_told_to(tmp_path):
    source = made("a.tsv", b"one\t1\n")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.tsv").write_bytes(b"one\t1\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tsv").write_bytes(b"mine")
    with pytest.raises(FedloraError, match="--overwrite"):
        prepare(source, tmp_path / "from", tmp_path)
    assert (tmp_path / "data" / "a.tsv").read_bytes() == b"mine"
    prepare(source, tmp_path / "from", tmp_path, overwrite=True)
    assert (tmp_path / "data" / "a.tsv").read_bytes() == b"one\t1\n"


def test_what_is_made_of_another_original_is_checked_too(tmp_path):
    rows = b'"3","Title","Plain words."\n"4","T","He said ""so""\\and, went"\n'
    wanted = b'Plain words.\tBusiness\n"He said ""so""\\and, went"\tSci/Tech\n'
    other = Original("ag/test.csv", len(rows), digest(rows), _MAKE["ag_news_csv"])
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "test.csv").write_bytes(rows)
    [(target, _)] = prepare(made("t.tsv", wanted, other), tmp_path / "from", tmp_path / "out")
    assert target.read_bytes() == wanted
    with pytest.raises(FedloraError, match="changed while it was read"):
        prepare(made("u.tsv", wanted + b"!", other), tmp_path / "from", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "sst"], "write fedlora data prepare NAME --from FOLDER"),
        (["prepare", "sst", "--from", "."], "did you mean sst2?"),
        (["prepare", "quickstart", "--from", "."], "nothing to prepare"),
        (["prepare", "sst2", "--from", "/nowhere"], "/nowhere is no folder"),
        (["list", "sst2"], "takes no name"),
    ],
)
def test_a_slip_is_refused_with_the_mend(tmp_path, words, said):
    with pytest.raises(FedloraError, match=re.escape(said)):
        CliRunner().invoke(app, ["data", *words, "--out", str(tmp_path)], catch_exceptions=False)


@pytest.mark.skipif("FEDLORA_SHARED" not in os.environ, reason="the public files are not here")
def test_a_scenarios_data_and_model_are_built_of_the_public_files(tmp_path):
    words = ["prepare", "study-rayleigh", "--from", os.environ["FEDLORA_SHARED"]]
    done = CliRunner().invoke(app, ["data", *words, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    for name in ("e2e", "tinystories-656k"):
        assert all(file.is_at(tmp_path / file.path) for file in sources()[name].files)
