"""Norms and positions that train beside the adapters (``lora.also``), held to unsplit models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from support.federation import Federation, relative, same, scenario
from transformers import AutoModel

from clients.state_store import ClientStateStore
from fedlora.check import check_scenario
from fedlora.commands.export import export_run
from fedlora.config import LoraConfig, Scenario, TaskConfig, TrainConfig
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.server.results import export
from fedlora.split import Checkpoint, TokenEmbedding
from simulations.in_process import federate
from simulations.unsplit import Unsplit

R_MAX, ALPHA = 3, 6.0
LENGTHS = {"0": [6, 4], "1": [5], "2": [3, 7]}
RANKS = {"0": 3, "1": 0, "2": 1}


def engine_of(folder: Path, *also: Any) -> SplitEngine:
    scenario = Scenario(
        lora=LoraConfig(r_max=R_MAX, alpha=ALPHA, also=also),
        task=TaskConfig(kind="classification", pool="mean"),
        train=TrainConfig(clip_norm=0.0),
    )
    engine = SplitEngine(Checkpoint(folder), scenario)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # B starts at zero
        for projection in engine.projections:
            projection.B.normal_(std=0.05, generator=generator)
    return engine


def batch(engine: SplitEngine, folder: Path) -> tuple[dict[str, Any], list[ClientRows]]:
    generator = torch.Generator().manual_seed(11)
    tokens = TokenEmbedding(Checkpoint(folder), torch.float32)
    rows = {
        c: [torch.randint(3, 101, (n,), generator=generator) for n in own]
        for c, own in LENGTHS.items()
    }
    count = len(engine.projections)
    sent = [
        ClientRows(tokens(torch.cat(own)).detach(), LENGTHS[c], [RANKS[c]] * count, c)
        for c, own in rows.items()
    ]
    return rows, sent


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_gradients_are_sums_over_unsplit_models_of_clients_of_any_rank(checkpoints, family):
    also = ("norm",) if family == "llama" else ("norm", "positions")
    engine = engine_of(checkpoints[family], *also)
    rows, sent = batch(engine, checkpoints[family])
    found = engine.forward(sent, train=True)
    cotangents = [torch.randn(z.shape, generator=torch.manual_seed(k)) for k, z in enumerate(found)]
    engine.backward(cotangents, [float(len(own)) for own in rows.values()])
    expected: dict[str, torch.Tensor] = {}
    for (client, own), cotangent in zip(rows.items(), cotangents, strict=True):
        model: Any = AutoModel.from_pretrained(checkpoints[family]).eval()
        if r := RANKS[client]:
            names = [p.name for p in engine.projections]
            config = PeftLoraConfig(r=r, lora_alpha=ALPHA * r / R_MAX, target_modules=names)
            model = get_peft_model(model, config).eval().base_model.model
            for p in engine.projections:
                layer = model.get_submodule(p.name)
                layer.lora_A["default"].weight.data.copy_(p.A[:r])
                layer.lora_B["default"].weight.data.copy_(p.B[:, :r])
        model.requires_grad_(True)
        for ids, given in zip(own, cotangent, strict=True):
            (model(input_ids=ids[None]).last_hidden_state[0].mean(0) * given).sum().backward()
        for tensor in engine.also.tensors:
            gradient = model.get_parameter(tensor.name).grad
            expected[tensor.name] = expected.get(tensor.name, 0) + gradient
    assert {"gpt2": "wpe.weight", "bert": "embeddings.position_embeddings.weight"}.get(
        family, "norm.weight"
    ) in expected
    norms = [n for n, _ in AutoModel.from_pretrained(checkpoints[family]).named_parameters()]
    norms = [n for n in norms if "norm" in n.lower() or "ln_" in n]
    assert norms and set(norms) <= set(expected)
    for tensor in engine.also.tensors:
        assert relative(tensor.parameter.grad, expected[tensor.name]) < 1e-5, tensor.name


def federated(model: Path, records: Path, *overrides: str) -> Scenario:
    keys = ["lora.also=['norm']", "head.share=step", "train.weight_decay=0.1"]
    return scenario(model, records, *keys, "train.clip_norm=0.3", *overrides)


@pytest.mark.parametrize(
    "more", [(), ("train.overlap=true", "task.pool=last")], ids=["whole", "halves"]
)
def test_training_equals_the_unsplit_model(tiny, records, more):
    federation = Federation(federated(tiny["llama"], records, *more))
    engine = federation.server.engine
    before = engine.also.values()
    unsplit = Unsplit(federation.server.scenario, engine.adapter())
    result = unsplit.train()
    federation.run()
    assert federation.recorder.losses() == pytest.approx(list(result.losses), rel=1e-5)
    for name, tensor in engine.also.values().items():
        assert not torch.equal(tensor, before[name])
        own = unsplit.model.base_model.model.get_parameter(name).detach()
        assert relative(tensor - before[name], own - before[name]) < 1e-3, name


def test_a_state_goes_on_bit_for_bit_and_is_of_the_same_parameters(checkpoints):
    def step(engine: SplitEngine, number: int) -> None:
        rows, sent = batch(engine, checkpoints["gpt2"])
        (a, *others) = engine.forward(sent, train=True)
        engine.backward([torch.ones_like(a), *others], [1.0] * len(rows))
        engine.update.step(number)

    one, other = (engine_of(checkpoints["gpt2"], "norm", "positions") for _ in range(2))
    step(one, 0)
    state = one.state_dict()
    other.load_state_dict(state)
    assert same(one.adapter(), other.adapter())
    step(one, 1)
    step(other, 1)
    assert same(one.adapter(), other.adapter())
    with pytest.raises(FedloraError, match="other norms and positions; resume with the same"):
        engine_of(checkpoints["gpt2"], "norm").load_state_dict(state)
    with pytest.raises(FedloraError, match="other norms and positions"):
        engine_of(checkpoints["gpt2"]).load_state_dict(state)


def test_a_run_that_broke_off_goes_on_bit_for_bit(tiny, records, tmp_path):
    cycles = "ranks.options.cycles=[[1],[0,3],[2]]"
    config = federated(
        tiny["gpt2"], records, "ranks.strategy=support.rank_cycles:RankCycles", cycles
    )
    checkpoints = Checkpoints(tmp_path)

    def federation() -> Federation:
        keep = lambda edge: ClientStateStore(edge, tmp_path / edge.name).handle  # noqa: E731
        return Federation(config, wrap=keep)

    def die() -> None:
        checkpoints.save(first.server.training)
        raise InterruptedError

    whole = Federation(config).run()
    first = federation()
    first.server.training.after_round = die
    with pytest.raises(InterruptedError):
        first.run()
    resumed = federation()
    training, state = resumed.server.training, checkpoints.latest()
    training.run(partial(checkpoints.restore, training, state))
    assert len(resumed.recorder.rounds) == 1
    assert same(resumed.server.engine.adapter(), whole.server.engine.adapter())
    told = [
        [event for event in own.recorder.events if event["event"] == "step"][-config.train.steps :]
        for own in (whole, resumed)
    ]
    assert told[0] == told[1]  # tokens and bits of the phase so far, too


def test_nobodys_gradient_moves_nothing(checkpoints):
    engine = engine_of(checkpoints["gpt2"], "norm")
    before = engine.adapter()
    rows, sent = batch(engine, checkpoints["gpt2"])
    engine.forward(sent, train=True)
    engine.backward([None] * len(rows), [1.0] * len(rows))
    engine.update.step(0)
    assert same(before, engine.adapter())


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_an_export_computes_as_the_engine_and_is_not_read_without_them(
    checkpoints, tmp_path, family
):
    also = ("norm",) if family == "llama" else ("norm", "positions")
    engine = engine_of(checkpoints[family], *also)
    with torch.no_grad():
        for number, parameter in enumerate(engine.also.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(number)) / 10)

    class Server:
        scenario = replace(
            engine.scenario, model=replace(engine.scenario.model, path=str(checkpoints[family]))
        )
        checkpoint = Checkpoint(checkpoints[family])

    Server.engine = engine  # type: ignore[attr-defined]
    adapter: Adapter = export(Server)  # type: ignore[arg-type]
    adapter.save(tmp_path / "peft")
    rows, sent = batch(engine, checkpoints[family])
    full = [replace(one, ranks=engine.full_ranks()) for one in sent]
    found = torch.cat(engine.forward(full, train=False))
    adapter.merge(tmp_path / "merged")
    base = AutoModel.from_pretrained(checkpoints[family])
    models = [PeftModel.from_pretrained(base, str(tmp_path / "peft"))]
    models.append(AutoModel.from_pretrained(tmp_path / "merged"))
    for model in models:
        model.eval()
        with torch.no_grad():
            states = [
                model(input_ids=i[None]).last_hidden_state[0] for o in rows.values() for i in o
            ]
        assert relative(torch.stack([s.mean(0) for s in states]), found) < 1e-5
    again = Adapter.load(tmp_path / "peft", takes_also=True)
    assert again.version == adapter.version and same(dict(again.also), dict(adapter.also))
    with pytest.raises(FedloraError, match="norms and positions that its run trained"):
        Adapter.load(tmp_path / "peft")
    with pytest.raises(FedloraError, match="export as merged"):
        adapter.save_with_one_alpha(tmp_path / "x")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.dtype=bf16"], "kept in bf16; set model.dtype"),
        (["model.weights=int8"], "kept in fp32, int8; set model.dtype"),
        (["compute.reuse_blocks=true"], "compute.reuse_blocks keeps that"),
        (["robust.average=median"], "robust.average is median; set it to mean"),
        (["compute.device_map={disk = '0-1'}", "compute.checkpoint=true"], "brought to the device"),
        (["channel.model=rayleigh", "channel.deliver_every=1"], "last delivered"),
        (["lora.also=['norm', 'norm']"], "name each once"),
        (["lora.also=['positions']"], "names positions, and the server's blocks of this llama"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tiny, records, keys, said):
    with pytest.raises(FedloraError, match=said):
        check_scenario(federated(tiny["llama"], records, *keys))


def test_blocks_of_the_clients_whose_norms_peft_takes_for_trained_ones_go_along(
    tiny, records, tmp_path
):
    """``norm``, which is trained, is the end of ``layers.0.input_layernorm``, which is not."""
    server = Federation(federated(tiny["llama"], records, "model.client_front=1")).run().server
    adapter = export(server)
    assert "norm.weight" in adapter.also and "layers.0.input_layernorm.weight" in adapter.beside
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path, takes_also=True)
    assert same(dict(again.also), dict(adapter.also)) and again.version == adapter.version
    assert same(dict(again.beside), dict(adapter.beside))
    base = AutoModel.from_pretrained(tiny["llama"])
    plain = {name: tensor.clone() for name, tensor in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, str(tmp_path)).merge_and_unload()
    for name, tensor in merged.named_parameters():
        if "norm" in name:
            assert torch.equal(tensor, {**plain, **adapter.also}[name]), name
            assert torch.equal(tensor, plain[name]) == (name not in adapter.also), name


def test_a_client_of_rank_0_everywhere_is_exported_with_the_norms_that_its_texts_pass(
    tiny, records, tmp_path
):
    keys = ("ranks.strategy=uniform", "ranks.options.r=0", "lora.also=['norm']", "train.lr=0.01")
    federate(federated(tiny["llama"], records, *keys), out=tmp_path / "run")
    with pytest.raises(FedloraError, match=r"client 0 has rank 0 everywhere.*export as merged"):
        export_run(tmp_path / "run", tmp_path / "peft", "peft", "0", None)
    export_run(tmp_path / "run", tmp_path / "merged", "merged", "0", None)
    trained = Adapter.load(tmp_path / "run" / "adapter", takes_also=True).also
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        found = {name.removeprefix("model."): name for name in file.keys()}  # noqa: SIM118
        for name, tensor in trained.items():
            assert torch.equal(file.get_tensor(found[name]), tensor), name
