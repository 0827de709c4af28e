"""An exported adapter is the engine's model, in plain PEFT and plain transformers."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.federation import Federation, relative, scenario
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.commands.export import export_run
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder
from fedlora.server.compute import ClientRows
from fedlora.server.results import export
from fedlora.tasks import Sample

LANGUAGE = ["task.kind=causal_lm"]
CASES = [
    ("gpt2", []),
    ("opt", []),
    ("llama", ["task.pool=last"]),
    ("bert", ["task.pool=cls"]),
    ("gpt2", LANGUAGE),
    ("opt", LANGUAGE),
    ("llama", LANGUAGE),
    ("llama-tied", LANGUAGE),
    ("gemma2", LANGUAGE),
    ("gpt2", [*LANGUAGE, "model.client_front=1", "model.client_back=1"]),
    ("bert", ["model.client_front=1", "task.pool=cls"]),
]


def trained(tiny: dict[str, Path], records: Path, family: str, *overrides: str) -> Federation:
    rates = ["train.lr=0.05", "train.rounds=1"]
    return Federation(scenario(tiny[family], records, *rates, *overrides)).run()


def mixed_ranks(count: int) -> list[int]:
    """Ranks 0 to 3, the first two projections without any."""
    rng = random.Random(4)
    return [0, 0, *(rng.randint(0, 3) for _ in range(count - 3)), 3]


def samples_of(federation: Federation) -> list[Sample]:
    return [client.door.truth(client.train)[0] for client in federation.clients]


def engine_output(federation: Federation, ranks: list[int]) -> torch.Tensor:
    """Return pooled states, or the logits of all tokens one row after the other."""
    client, samples = federation.clients[0], samples_of(federation)
    lengths = [len(sample.ids) for sample in samples]
    with torch.no_grad():
        e = client.model.front(torch.tensor([i for s in samples for i in s.ids]), lengths)
        rows = ClientRows(e, lengths, ranks)
        z = federation.server.engine.forward([rows], train=False)[0]
        if client.model.task.pooled:
            return z
        head: Any = client.head.module
        logits = client.model.back(z, lengths) @ head.weight.T
        return head.cap * torch.tanh(logits / head.cap) if head.cap else logits


def model_output(federation: Federation, model: nn.Module) -> torch.Tensor:
    pool, outputs = federation.server.scenario.task.pool, []
    model.eval()
    with torch.no_grad():
        for sample in samples_of(federation):
            output = model(input_ids=torch.tensor([sample.ids]))
            if not federation.clients[0].model.task.pooled:
                outputs.append(output.logits[0])
                continue
            states = output.last_hidden_state[0]
            chosen = {"last": states[-1:], "cls": states[:1], "mean": states.mean(0)[None]}
            outputs.append(chosen[pool])
    return torch.cat(outputs)


def base_model(federation: Federation, folder: str | Path = "") -> nn.Module:
    cls = AutoModel if federation.clients[0].model.task.pooled else AutoModelForCausalLM
    return cls.from_pretrained(folder or federation.server.scenario.model.path)


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_adapter_in_peft_and_merged_gives_the_engines_output(
    tiny, records, tmp_path, family, overrides
):
    federation = trained(tiny, records, family, *overrides)
    adapter, engine = export(federation.server), federation.server.engine
    mixed = mixed_ranks(len(engine.projections))
    bare = engine_output(federation, engine.zero_ranks())
    expected = engine_output(federation, mixed)
    assert relative(expected, bare) > 1e-3  # the adapter matters
    assert relative(bare, model_output(federation, base_model(federation))) < 1e-5

    adapter.save(tmp_path / "full")
    adapter.save(tmp_path / "mixed", mixed)
    adapter.truncated(mixed).save(tmp_path / "padded")
    adapter.truncated(mixed).merge(tmp_path / "merged")
    for name, reference in {
        "full": engine_output(federation, engine.full_ranks()),
        "mixed": expected,
        "padded": expected,
    }.items():
        model = PeftModel.from_pretrained(base_model(federation), tmp_path / name)
        assert relative(model_output(federation, model), reference) < 1e-5, name
    merged = base_model(federation, tmp_path / "merged")
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert relative(model_output(federation, merged), expected) < 1e-5

    config = json.loads((tmp_path / "padded" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert len(config["target_modules"]) == len(engine.projections)
    config = json.loads((tmp_path / "mixed" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == sum(rank > 0 for rank in mixed)


def test_loaded_adapter_keeps_the_order_of_the_projections(tiny, records, tmp_path):
    """A rank vector follows that order, and PEFT's own file does not keep it."""
    adapter = export(trained(tiny, records, "gpt2").server)
    adapter.save(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert list(loaded.factors) == list(adapter.factors)
    assert (loaded.alpha, loaded.task_type, loaded.base_model, loaded.fan_in_fan_out) == (
        adapter.alpha,
        adapter.task_type,
        adapter.base_model,
        adapter.fan_in_fan_out,
    )
    for name, pair in adapter.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(loaded.factors[name], pair, strict=True))


def test_an_adapter_that_is_written_again_is_whole_at_every_moment(tiny, records, tmp_path):
    """A run writes it after each round, and may be killed meanwhile."""
    adapter = export(trained(tiny, records, "gpt2").server)
    adapter.save(tmp_path)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            adapter.save(tmp_path)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            for _ in range(300):
                assert list(Adapter.load(tmp_path).factors) == list(adapter.factors)
        finally:
            over.set()
        writer.result()


@pytest.mark.parametrize("format_", ["peft", "padded", "gguf-ready", "merged"])
def test_export_of_a_run_uses_the_ranks_of_a_client(tiny, records, tmp_path, format_):
    cycles = "ranks.options.cycles=[[1],[0,2,3],[2]]"
    federation = trained(
        tiny, records, "opt", *LANGUAGE, "ranks.strategy=support.rank_cycles:RankCycles", cycles
    )
    folder = RunFolder.create(tmp_path / "run")
    for record in federation.recorder.rounds:
        folder.append_round(record)
    export(federation.server).save(folder.adapter)
    export_run(folder.path, tmp_path / "out", format_, "1", None)

    count = len(federation.server.engine.projections)
    ranks = [[0, 2, 3][index % 3] for index in range(count)]
    model = base_model(federation, tmp_path / "out" if format_ == "merged" else "")
    if format_ == "merged":
        assert (tmp_path / "out" / "tokenizer.json").exists()
    else:
        model = PeftModel.from_pretrained(model, tmp_path / "out")
    assert relative(model_output(federation, model), engine_output(federation, ranks)) < 1e-5


def test_merged_model_takes_its_vocabulary_files_along(tiny, records, tmp_path):
    federation = trained(tiny, records, "gpt2", *LANGUAGE)
    folder = Path(federation.server.scenario.model.path)
    names = ("vocab.json", "merges.txt")
    for name in names:
        (folder / name).write_text("{}")
    try:
        export(federation.server).merge(tmp_path)
    finally:
        for name in names:
            (folder / name).unlink()
    assert {"tokenizer.json", *names} <= {file.name for file in tmp_path.iterdir()}


def test_ranks_that_do_not_fit_are_refused(tiny, records, tmp_path):
    adapter = export(trained(tiny, records, "gpt2").server)
    count = len(adapter.factors)
    with pytest.raises(FedloraError, match="r_max 3"):
        adapter.save(tmp_path, [4] * count)
    with pytest.raises(FedloraError, match=f"{count} projections"):
        adapter.truncated([1])
    with pytest.raises(FedloraError, match="every rank is 0"):
        adapter.save(tmp_path, [0] * count)


def test_damaged_adapter_is_named(tiny, records, tmp_path):
    adapter = export(trained(tiny, records, "gpt2").server)
    with pytest.raises(FedloraError, match="no adapter that can be read"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FedloraError, match="no adapter that can be read"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FedloraError, match="no adapter that can be read"):
        Adapter.load(tmp_path)
