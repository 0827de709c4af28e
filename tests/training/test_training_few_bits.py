"""Blocks whose matrices are kept in few bits train as the matrices do that these stand for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from support.blocks import gradients
from support.federation import LABELS, Federation, relative, scenario
from test_training_export_heads import TEXTS, answers, expected, inferred, of_card, ran
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedlora.check import check_scenario
from fedlora.commands.export import export_run
from fedlora.config import LoraConfig
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import check_identity
from fedlora.lora.fused import FusedLora
from fedlora.lora.layers import add_lora
from fedlora.server.compute.placement import Placement
from fedlora.server.results import export
from fedlora.split import LIBRARIES, Blocks, Checkpoint, FewBitLinear, few_bits, predicted_bytes


def needs(form: str) -> None:
    if form in LIBRARIES:
        library = LIBRARIES[form]
        pytest.importorskip(library, reason=f"needs fedlora[{library}]")


def of_library(weight: torch.Tensor, form: str) -> torch.nn.Linear:
    """Return the library's own layer of a matrix."""
    d_out, d_in = weight.shape
    if form == "nf4":
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            d_in, d_out, False, torch.float32, compress_statistics=False, quant_type="nf4"
        )
        layer.load_state_dict({"weight": weight})
        return layer.to("cpu")
    layer = torch.nn.Linear(d_in, d_out, bias=False)
    layer.weight.data = weight.clone()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())
    return layer


def dequantised(weight: torch.Tensor, form: str) -> torch.Tensor:
    """Return what a matrix in few bits stands for, by its library's own way back."""
    if form == "bf16":
        return weight.bfloat16().float()
    kept = of_library(weight, form).weight
    if form == "int8":
        return kept.dequantize()
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(kept.data, kept.quant_state)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_all_gradients_equal_those_of_peft_over_the_librarys_own_layers(checkpoints, form):
    needs(form)
    checkpoint, lora = Checkpoint(checkpoints["llama"]), LoraConfig(r_max=3, alpha=6.0)
    config = scenario(Path(), Path()).compute
    own = Blocks(checkpoint, 0, 4, final=True, dtype=torch.float32, load=False)
    placement = Placement(own, config, form)
    placement.load()
    projections = add_lora(own, lora, 3)
    placement.attach(projections)
    theirs = Blocks(checkpoint, 0, 4, final=True, dtype=torch.float32)
    others = add_lora(theirs, lora, 3)
    for projection in others:
        layer = of_library(projection.module.get_base_layer().weight.data, form)
        projection.module.base_layer = layer.requires_grad_(False)
    y, found = gradients(own, projections)
    expected_y, expected = gradients(theirs, others)
    assert relative(y, expected_y) < 1e-5
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def write_dense(source: Path, target: Path, form: str, blocks: range, inside: str) -> Path:
    """Copy a model with matrices of some blocks as few bits have them, and the rest as it is."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        held = any(f"{inside}.{number}." in name for number in blocks)
        if held and tensor.dim() == 2:
            by_input = "Conv1D" if inside == "h" else ""
            matrix = (tensor.T if by_input else tensor).contiguous()
            dense = dequantised(matrix, form)
            tensors[name] = (dense.T if by_input else dense).contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("family", "form", "overrides"),
    [
        ("gpt2", "int8", ["model.client_front=1", "compute.checkpoint=true"]),
        ("bert", "nf4", ["lora.dropout=0.2", 'lora.targets=["query", "output.dense"]']),
        ("opt", "bf16", ["robust.average=median"]),
    ],
)
def test_a_run_is_that_over_the_dequantised_checkpoint(
    tiny, records, tmp_path, family, form, overrides
):
    needs(form)
    start = 1 if "model.client_front=1" in overrides else 0
    inside = {"gpt2": "h", "bert": "layer", "opt": "layers"}[family]
    dense = write_dense(tiny[family], tmp_path / "dense", form, range(start, 4), inside)
    own = Federation(scenario(tiny[family], records, f"model.weights={form}", *overrides)).run()
    other = Federation(scenario(dense, records, *overrides)).run()
    expected = other.server.engine.adapter()
    for name, factor in own.server.engine.adapter().items():
        assert relative(factor, expected[name]) < 1e-4, name
    layers = [m for m in own.server.engine.blocks.modules() if isinstance(m, FewBitLinear)]
    assert len(layers) == sum("weight" in n and p.dim() == 2 for n, p in matrices(dense, start))
    for layer in layers:
        bias = 0 if layer.bias is None else layer.bias.nbytes
        size = predicted_bytes(layer.out_features, layer.in_features, form, 4)
        assert layer.kept_bytes - bias == size
    fused = [isinstance(p.module.forward, FusedLora) for p in own.server.engine.projections]
    assert all(fused) == ("lora.dropout=0.2" not in overrides)


def matrices(folder: Path, start: int) -> list[tuple[str, torch.nn.Parameter]]:
    checkpoint = Checkpoint(folder)
    blocks = Blocks(checkpoint, start, 4, final=False, dtype=torch.float32)
    return list(blocks.layers.named_parameters())


def test_an_export_says_what_it_was_trained_over_and_computes_with_it(
    tiny, records, tmp_path, capsys
):
    needs("nf4")
    run = tmp_path / "run"
    federation = ran(run, tiny["llama"], records, "model.weights=nf4")
    own = expected(federation)
    for form in ("peft", "merged"):
        export_run(run, tmp_path / form, form, None, None)
        assert "matrices are kept as nf4" in (tmp_path / form / "README.md").read_text()
    assert json.loads((tmp_path / "peft" / "fedlora.json").read_bytes())["weights"] == "nf4"
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    pad = AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token_id
    assert relative(answers(federation, merged, pad), own) < 1e-5
    load = AutoPeftModelForSequenceClassification.from_pretrained
    over_another = load(tmp_path / "peft", num_labels=len(LABELS))
    assert relative(answers(federation, over_another, None), own) > 1e-3
    shown = of_card(tmp_path / "merged", TEXTS)
    for folder in (run, tmp_path / "peft"):
        for (label, chance), (right, by) in zip(
            inferred(capsys, folder, TEXTS, None, None, 1), shown, strict=True
        ):
            assert label == right
            assert abs(chance - by) < 6e-4  # three digits are written


@pytest.mark.parametrize("value", ["int4", "8"])
def test_an_unknown_form_is_refused_with_those_that_there_are(tiny, records, value):
    with pytest.raises(FedloraError, match=rf"model.weights.*{value}") as refused:
        scenario(tiny["llama"], records, f"model.weights={value}")
    assert "nf4" in str(refused.value)


@pytest.mark.parametrize(
    "placed", ['compute.device_map={disk = "1"}', 'compute.max_memory={cpu = "1GiB"}']
)
def test_few_bits_of_blocks_that_are_brought_are_refused_with_key_and_value(tiny, records, placed):
    with pytest.raises(FedloraError, match=rf"model.weights is 'nf4', and {placed.split('=')[0]}"):
        scenario(tiny["llama"], records, "model.weights=nf4", placed, "compute.checkpoint=true")


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_missing_library_is_named_with_its_extra_before_anything_starts(
    tiny, records, monkeypatch, form
):
    config = scenario(tiny["llama"], records, f"model.weights={form}")
    monkeypatch.setattr(few_bits, "_installed", lambda library: False)
    with pytest.raises(FedloraError, match=rf"'{form}'.* install fedlora\[{LIBRARIES[form]}\]"):
        check_scenario(config)


def test_a_device_that_cannot_compute_with_a_form_is_refused():
    with pytest.raises(FedloraError, match=r"'bf16', with which 'meta' cannot"):
        few_bits.check_form("bf16", "meta")


def test_a_client_that_expects_other_matrices_is_refused(tiny, records):
    identity = Federation(scenario(tiny["llama"], records, "model.weights=bf16")).server.identity
    other = replace(identity, dtype="fp32")
    with pytest.raises(ProtocolError, match=r"model\.weights alike"):
        check_identity(identity, other.to_dict())


def test_an_export_of_gpt2_says_how_the_base_stores_its_matrices(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, "model.weights=bf16"))
    assert export(federation.server).fan_in_fan_out
