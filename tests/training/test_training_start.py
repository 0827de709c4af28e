"""A run may begin from any LoRA adapter that PEFT saved."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.federation import Federation, relative, scenario
from test_training_export import base_model, engine_output, model_output, trained

from fedlora.check import check_scenario
from fedlora.errors import FedloraError
from fedlora.server.results import export

LANGUAGE = ["task.kind=causal_lm"]


def foreign(federation: Federation, folder, **options):
    """Save an adapter that PEFT made by itself, with random factors; return its model."""
    torch.manual_seed(5)
    defaults = {"r": 2, "lora_alpha": 7, "init_lora_weights": False, "target_modules": "all-linear"}
    model = get_peft_model(base_model(federation), LoraConfig(**defaults | options))
    model.save_pretrained(str(folder))
    return model


def beginning(tiny, records, family, folder, *overrides) -> Federation:
    return Federation(scenario(tiny[family], records, f"lora.start={folder}", *overrides))


@pytest.mark.parametrize(
    ("family", "overrides", "options"),
    [
        ("llama", [], {"rank_pattern": {"q_proj": 1, "down_proj": 3}}),
        ("llama", LANGUAGE, {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}),
        ("gpt2", LANGUAGE, {"use_rslora": True, "fan_in_fan_out": True}),
        ("opt", LANGUAGE, {"target_modules": ["q_proj", "fc2"]}),
        ("bert", ["task.pool=cls"], {"target_modules": ["query", "value"]}),
    ],
    ids=str,
)
def test_an_engine_that_begins_from_pefts_adapter_gives_pefts_output(
    tiny, records, tmp_path, family, overrides, options
):
    plain = Federation(scenario(tiny[family], records, *overrides))
    model = foreign(plain, tmp_path / "adapter", **options)
    federation = beginning(tiny, records, family, tmp_path / "adapter", *overrides)
    engine = federation.server.engine
    found = engine_output(federation, engine.full_ranks())
    assert relative(found, model_output(federation, model)) < 1e-5
    assert relative(found, engine_output(federation, engine.zero_ranks())) > 1e-3
    check_scenario(federation.server.scenario)


def test_an_exported_run_goes_on_where_it_was(tiny, records, tmp_path):
    before = trained(tiny, records, "llama", "lora.alpha=4")
    export(before.server).save(tmp_path)
    after = beginning(tiny, records, "llama", tmp_path, "lora.alpha=4")
    expected, found = before.server.engine.adapter(), after.server.engine.adapter()
    assert all(relative(found[name], expected[name]) < 1e-6 for name in expected)


def test_components_beyond_its_rank_can_still_be_learned(tiny, records, tmp_path):
    plain = Federation(scenario(tiny["llama"], records))
    foreign(plain, tmp_path, r=1)
    for projection in beginning(tiny, records, "llama", tmp_path).server.engine.projections:
        assert bool(projection.A[1:].abs().sum(1).gt(0).all())
        assert not projection.B[:, 1:].any()
        assert projection.B[:, :1].any()


def test_an_adapter_that_does_not_fit_is_refused_with_the_mend(tiny, records, tmp_path):
    plain = Federation(scenario(tiny["llama"], records))
    foreign(plain, tmp_path / "large", r=9)
    foreign(plain, tmp_path / "dora", use_dora=True)
    foreign(plain, tmp_path / "fine")
    foreign(Federation(scenario(tiny["gpt2"], records)), tmp_path / "other", fan_in_fan_out=True)
    damaged = tmp_path / "damaged"
    foreign(plain, damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"x" * 40)
    wrong = tmp_path / "wrong"
    foreign(plain, wrong)
    tensors = load_file(wrong / "adapter_model.safetensors")
    name = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {name: tensors[name][:, :-1].clone()}, wrong / "adapter_model.safetensors")
    (tmp_path / "empty").mkdir()
    prefix = tmp_path / "prefix"
    foreign(plain, prefix)
    settings = json.loads((prefix / "adapter_config.json").read_text())
    (prefix / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    for folder, overrides, message in (
        ("large", [], r"has rank 9 at .*; raise lora.r_max"),
        ("dora", [], "was made with use_dora"),
        ("fine", ["lora.targets=q_proj"], "which lora.targets does not; add it there"),
        ("other", [], "begin from an adapter of this model"),
        ("damaged", [], "copy it anew"),
        ("wrong", [], "begin from an adapter of this model"),
        ("empty", [], "has no adapter_model.safetensors"),
        ("prefix", [], "is no LoRA adapter"),
        ("nowhere", [], "there is no such folder of a PEFT adapter"),
    ):
        with pytest.raises(FedloraError, match=message):
            beginning(tiny, records, "llama", tmp_path / folder, *overrides)
