"""A model, data and the command line, in this process and in one of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from fedlora.cli import main
from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.report import RunFolder
from fedlora.server.results import write_results
from simulations.in_process import Record, run

Call = Callable[..., tuple[int, str]]


def write_texts(path: Path) -> Path:
    rows = [f"w{number % 90 + 1} w5,{'ab'[number % 2]}" for number in range(80)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture(scope="session")
def model(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 with a tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "gpt2"
    shutil.copytree(checkpoints["gpt2"], folder)
    words = {"</s>": 0, **{f"w{number}": number for number in range(1, 101)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A csv file of 80 texts in two classes."""
    return write_texts(tmp_path / "data.csv")


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three clients that has ended."""
    root = tmp_path_factory.mktemp("finished")
    data = write_texts(root / "data.csv")
    settings = [
        *(f"model.path={model}", f"data.train={data}", "federation.clients=3", "lora.r_max=2"),
        *("train.rounds=1", "train.steps=1", "evaluate.baseline=false", "head.share=step"),
    ]
    config = with_overrides(Scenario(), settings)
    folder = RunFolder.create(root / "run")
    folder.write_scenario(scenario_to_toml(config))
    server = run(config, record := Record(), workers=1)
    folder.append_round(record.rounds[-1])
    write_results(folder, server, {"0": {"classes": ["a", "b"]}})
    folder.append_event("done", status="finished", text="")
    return folder.path


@pytest.fixture
def scenario(tmp_path: Path, model: Path, data: Path) -> Path:
    """A scenario file over both."""
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\n[model]\npath = "{model}"\n[data]\ntrain = "{data}"\n'
        "[federation]\nclients = 3\n"
    )
    return path


@pytest.fixture
def fedlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process; return its status and what it said of the error."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return call
