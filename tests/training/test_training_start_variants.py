"""Each form that PEFT gives an adapter is taken over as ``PeftModel.from_pretrained`` loads it, or
refused."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.federation import Federation, relative, scenario
from test_training_export import base_model, engine_output, model_output
from transformers import AutoModelForSequenceClassification

from fedlora.check import check_scenario
from fedlora.errors import FedloraError
from fedlora.lora import peft_settings

LANGUAGE = ["task.kind=causal_lm"]
ATTENTION = {"llama": "q_proj", "gpt2": "c_attn", "opt": "q_proj", "bert": "query"}
SECOND = {"llama": "v_proj", "gpt2": "c_fc", "opt": "fc2", "bert": "value"}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make(model, folder, dtype=torch.float32, **options):
    """Save an adapter whose factors are all random, as PEFT does."""
    torch.manual_seed(5)
    defaults = {"r": 2, "lora_alpha": 7}
    model = get_peft_model(model, LoraConfig(**defaults | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(str(folder))
    return model.to(torch.float32)


def rewrite(folder, *, tensors=None, **settings):
    """Change an adapter's settings, and its tensors by a function."""
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if tensors:
        changed = tensors(load_file(folder / WEIGHTS))
        save_file({k: v.contiguous() for k, v in changed.items()}, folder / WEIGHTS)


def beginning(tiny, records, family, folder, *overrides) -> Federation:
    federation = Federation(scenario(tiny[family], records, f"lora.start={folder}", *overrides))
    check_scenario(federation.server.scenario)
    return federation


def refusal(tiny, records, family, folder, *overrides) -> str:
    """Return the sentence with which the check refuses; the engine refuses with the same."""
    config = scenario(tiny[family], records, f"lora.start={folder}", *overrides)
    with pytest.raises(FedloraError) as refused:
        check_scenario(config)
    with pytest.raises(FedloraError) as later:
        Federation(config)
    assert str(refused.value) == str(later.value)
    return str(refused.value)


@pytest.fixture
def plain(tiny, records):
    """Return a federation of a family whose adapters are as they were drawn."""

    def build(family, *overrides):
        return Federation(scenario(tiny[family], records, *overrides))

    return build


VARIANTS = [
    {"alpha_pattern": {".*layers?.*": 20, "^model.layers.1.self_attn.QUERY": 3, r"h\.1\..*": 2}},
    {"alpha_pattern": {"0.*.QUERY": 1, "QUERY": 30}},
    {"rank_pattern": {"QUERY": 1}, "alpha_pattern": {"QUERY": 9, "SECOND": 2}},
    {"rank_pattern": {".*[12].*QUERY": 3}, "use_rslora": True},
    {"layers_to_transform": [1, 2]},
    {"layers_to_transform": 0},
    {"target_modules": r".*\.[02]\..*(QUERY|SECOND)"},
    {"exclude_modules": r".*\.1\..*"},
    {"exclude_modules": ["SECOND"]},
    {"lora_dropout": 0.5, "fan_in_fan_out": True, "use_rslora": True},
    {"init_lora_weights": "gaussian", "dtype": torch.bfloat16},
    {"init_lora_weights": "eva", "dtype": torch.float16},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "mica"},
    {"init_lora_weights": False, "ensure_weight_tying": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_what_peft_loads_of_a_variant_is_what_training_begins_from(
    tiny, records, plain, tmp_path, family, options
):
    overrides = [] if family == "bert" else LANGUAGE
    text = json.dumps(options, default=str).replace("QUERY", ATTENTION[family])
    chosen = json.loads(text.replace("SECOND", SECOND[family]))
    chosen = {"target_modules": [ATTENTION[family], SECOND[family]]} | chosen
    dtype = options.get("dtype", torch.float32)
    before = plain(family, *overrides)
    make(base_model(before), tmp_path, **chosen | {"dtype": dtype})
    engine = (federation := beginning(tiny, records, family, tmp_path, *overrides)).server.engine
    found = engine_output(federation, engine.full_ranks())
    model = PeftModel.from_pretrained(base_model(before), tmp_path)
    assert relative(found, model_output(before, model)) < 1e-5
    assert relative(found, engine_output(federation, engine.zero_ranks())) > 1e-3


def test_of_keys_that_fit_one_module_the_first_in_the_file_counts_and_that_is_said(
    tiny, records, plain, tmp_path, caplog
):
    """PEFT sorts them in saving, so that nobody can tell which one training went by."""
    before = plain("llama", *LANGUAGE)
    trained = make(
        base_model(before),
        tmp_path,
        target_modules=["q_proj", "v_proj"],
        alpha_pattern={"self_attn.q_proj": 40, ".*q_proj": 3},
    )
    with caplog.at_level(logging.WARNING, "fedlora"):
        federation = beginning(tiny, records, "llama", tmp_path, *LANGUAGE)
    assert "several keys of alpha_pattern fit model.layers.0.self_attn.q_proj" in caplog.text
    found = engine_output(federation, federation.server.engine.full_ranks())
    loaded = PeftModel.from_pretrained(base_model(before), tmp_path)
    assert relative(found, model_output(before, loaded)) < 1e-5
    assert relative(found, model_output(before, trained)) > 1e-3  # which PEFT has lost


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_of_a_changed_base_is_refused_until_it_is_converted(
    tiny, records, plain, tmp_path, start
):
    before = plain("llama", *LANGUAGE)
    targets = ["q_proj", "down_proj"]
    config = LoraConfig(r=1, lora_alpha=3, target_modules=targets, init_lora_weights=start)
    model = get_peft_model(base_model(before), config)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide says
    model.save_pretrained(str(tmp_path / "initial"))
    model.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.1)
    expected = model_output(before, model)
    model.save_pretrained(str(tmp_path / "changed"))
    message = refusal(tiny, records, "llama", tmp_path / "changed", *LANGUAGE)
    assert f"init_lora_weights = '{start}'" in message
    assert "path_initial_model_for_weight_conversion" in message
    assert ("merge_and_unload" in message) == ("niter" not in start)
    if "niter" not in start:
        loaded = PeftModel.from_pretrained(base_model(before), tmp_path / "changed")
        assert relative(model_output(before, loaded.merge_and_unload()), expected) < 1e-5

    model.save_pretrained(
        str(tmp_path / "converted"),
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
    )
    federation = beginning(tiny, records, "llama", tmp_path / "converted", *LANGUAGE)
    found = engine_output(federation, federation.server.engine.full_ranks())
    assert relative(found, expected) < 1e-5


def test_every_setting_of_peft_is_decided():
    """A newer PEFT with another field fails here before it fails a user in silence."""
    groups = [peft_settings.TAKEN, peft_settings.WITHOUT_EFFECT, peft_settings.REFUSED.keys()]
    assert {field.name for field in dataclasses.fields(LoraConfig)} == set().union(*groups)
    assert sum(map(len, groups)) == len(set().union(*groups))
    off = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    assert all(off[name] in values for name, values in peft_settings.REFUSED.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora = true"),
        ({"bias": "lora_only"}, 'bias = "lora_only"'),
        ({"lora_bias": True}, "lora_bias = true"),
        ({"use_qalora": True}, "use_qalora = true"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens = [1]"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"kasa_config": {}}, "kasa_config = {}"),
        ({"velora_config": {}}, "velora_config"),
        ({"monteclora_config": {}}, "monteclora_config"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"megatron_config": {}}, "megatron_config"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices = [1]"),
        ({"target_parameters": ["x"]}, 'target_parameters = ["x"]'),
        ({"layer_replication": [[0, 1]]}, "layer_replication = [[0, 1]]"),
        ({"modules_to_save": ["embed_tokens"]}, 'modules_to_save = ["embed_tokens"]'),
        ({"init_lora_weights": "corda"}, "init_lora_weights = 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights = 'lora_ga'"),
        ({"init_lora_weights": "newest"}, "'newest', which neither fedlora nor PEFT"),
        ({"use_newest": {"beta": 2}, "peft_version": "9.1"}, "has use_newest = {"),
        ({"rank_pattern": {"(": 2}}, "'(.*\\\\.)?(()$', which is no regular expression"),
        ({"rank_pattern": [2]}, "rank_pattern = [2]"),
        ({"rank_pattern": {"q_proj": 1}}, "has rank 2 and 2 at"),
        ({"r": 2.0}, "the rank 2.0"),
        ({"lora_alpha": "16"}, "the alpha '16'"),
        ({"target_modules": None}, "names no target_modules"),
        ({"target_modules": ["v_proj"]}, "holds factors of model.layers.0.self_attn.q_proj"),
        (
            {"target_modules": ["q_proj", "v_proj"]},
            "lacks the factors of model.layers.0",
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lacks the factors of model.embed_tokens"),
        ({"target_modules": "q_proj", "layers_to_transform": [1]}, "refused by PEFT itself"),
        ({"task_type": "CAUSAL_LM", "peft_type": "ADALORA"}, "its peft_type is 'ADALORA'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_factors_alone_do_not_hold_are_refused_with_their_value(
    tiny, records, plain, tmp_path, settings, words
):
    make(base_model(plain("llama", *LANGUAGE)), tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, **settings)
    message = refusal(tiny, records, "llama", tmp_path, *LANGUAGE)
    assert words in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"use_newest": None, "other": False, "third": {}, "enable_lora": None},
        {"eva_config": {"rho": 2.0}, "corda_config": {"corda_method": "ipm"}, "loftq_config": None},
        {"qalora_group_size": 32, "megatron_core": "other", "runtime_config": {}},
        {"rank_pattern": None, "alpha_pattern": None, "auto_mapping": {"unsloth_fixed": True}},
        {"base_model_name_or_path": "/elsewhere", "revision": "abc", "task_type": None},
    ],
    ids=str,
)
def test_settings_without_effect_on_saved_factors_are_passed_over(
    tiny, records, plain, tmp_path, settings
):
    before = plain("llama", *LANGUAGE)
    model = make(base_model(before), tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, **settings)
    federation = beginning(tiny, records, "llama", tmp_path, *LANGUAGE)
    found = engine_output(federation, federation.server.engine.full_ranks())
    assert relative(found, model_output(before, model)) < 1e-5


def changed(name, value=None):
    """Return a change that sets or removes a tensor."""

    def change(tensors):
        kept = {k: v for k, v in tensors.items() if not k.endswith(name)}
        return kept if value is None else kept | {name: value}

    return change


Q = "model.layers.0.self_attn.q_proj"
TENSORS = [
    (changed(f"{Q}.lora_A.weight"), "holds one factor of"),
    (
        lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()},
        "PEFT loads names that begin with base_model.model. alone",
    ),
    (
        lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()},
        "q_proj.lora_A.default.weight, which is no factor",
    ),
    (
        lambda t: {k.replace("model.layers.0.", "layers.0."): v for k, v in t.items()},
        "has names with and without model.",
    ),
    (
        lambda t: {k.replace("model.layers.0.", "vision.layers.0."): v for k, v in t.items()},
        "adapts vision.layers.0.self_attn.q_proj, which is no matrix of this model's blocks",
    ),
    (lambda t: {k: v.fill_(float("nan")) for k, v in t.items()}, "no finite numbers"),
    (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "no finite numbers"),
    (lambda t: {k: v.reshape(-1) for k, v in t.items()}, "begin from an adapter of this model"),
    (changed(f"base_model.model.{Q}.lora_B.bias", torch.ones(16)), "lora_B.bias, which is no"),
    (changed(f"base_model.model.{Q}.bias", torch.ones(16)), "q_proj.bias, which is no factor"),
    (changed("base_model.model.lm_head.lora_A.weight", torch.ones(2, 16)), "adapts lm_head"),
    (
        changed("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(2, 101)),
        "adapts model.embed_tokens",
    ),
    (lambda t: {}, "holds no LoRA factors of this model"),
]


@pytest.mark.parametrize(("change", "words"), TENSORS, ids=[words for _, words in TENSORS])
def test_tensors_that_peft_would_not_load_as_they_look_are_refused(
    tiny, records, plain, tmp_path, change, words
):
    make(base_model(plain("llama", *LANGUAGE)), tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, tensors=change)
    assert words in refusal(tiny, records, "llama", tmp_path, *LANGUAGE)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "opt"])
def test_embeddings_beside_the_factors_are_the_bases_or_refused(
    tiny, records, plain, tmp_path, family
):
    kind = family.partition("-")[0]
    before = plain(family, *LANGUAGE)
    model = make(base_model(before), tmp_path, target_modules=[ATTENTION[kind]])
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    kept = [name for name in load_file(tmp_path / WEIGHTS) if "lora_" not in name]
    assert kept
    federation = beginning(tiny, records, family, tmp_path, *LANGUAGE)
    found = engine_output(federation, federation.server.engine.full_ranks())
    assert relative(found, model_output(before, model)) < 1e-5

    rewrite(tmp_path, tensors=lambda t: t | {kept[0]: t[kept[0]] + 1e-3})
    message = refusal(tiny, records, family, tmp_path, *LANGUAGE)
    assert "with other values than the base model" in message


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_a_classifiers_adapter_is_taken_without_its_head_and_that_is_said(
    tiny, records, plain, tmp_path, family, caplog
):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny[family], num_labels=5)
    targets = [ATTENTION[family], "dense"] if family == "bert" else [ATTENTION[family]]
    model = make(classifier, tmp_path, task_type="SEQ_CLS", target_modules=targets).eval()
    with caplog.at_level(logging.WARNING, "fedlora"):
        federation = beginning(tiny, records, family, tmp_path, "task.pool=mean")
    assert "is taken over without its head" in caplog.text
    found = engine_output(federation, federation.server.engine.full_ranks())
    inner = model.base_model.model.base_model
    assert relative(found, model_output(federation, inner)) < 1e-5
    if family != "bert":
        message = refusal(tiny, records, family, tmp_path, *LANGUAGE)
        assert "modules_to_save = ['classifier', 'score']" in message


@pytest.mark.parametrize(("made", "used"), [(LANGUAGE, []), ([], LANGUAGE)], ids=str)
def test_an_adapter_of_the_other_model_class_is_the_same_adapter(
    tiny, records, plain, tmp_path, made, used
):
    """Its patterns go by the names of the class that it was saved from."""
    prefix = "^model." if made else "^"
    model = make(
        base_model(plain("llama", *made)),
        tmp_path,
        target_modules=r".*\.q_proj",
        alpha_pattern={f"{prefix}layers.1.self_attn.q_proj": 30},
    ).eval()
    federation = beginning(tiny, records, "llama", tmp_path, *used)
    found = engine_output(federation, federation.server.engine.full_ranks())
    after = plain("llama", *used)
    other, merged = base_model(after), model.merge_and_unload()
    states = (merged.model if made else merged).state_dict()
    (other if made else other.model).load_state_dict(states)
    assert relative(found, model_output(after, other)) < 1e-5


def test_where_else_an_adapter_is_wanted_or_lies_is_said(tiny, records, plain, tmp_path):
    base = base_model(plain("llama", *LANGUAGE))
    make(base, tmp_path / "fine", target_modules=["q_proj"])
    assert "lora.targets does not; add it there" in refusal(
        tiny, records, "llama", tmp_path / "fine", *LANGUAGE, "lora.targets=v_proj"
    )
    assert "model.client_front or model.client_back leaves to the clients" in refusal(
        tiny, records, "llama", tmp_path / "fine", *LANGUAGE, "model.client_front=1"
    )
    (tmp_path / "several").mkdir()
    for name in ("de", "fr"):
        (tmp_path / "fine").rename(tmp_path / "several" / name)
        make(base_model(plain("llama", *LANGUAGE)), tmp_path / "fine", target_modules=["q_proj"])
    message = refusal(tiny, records, "llama", tmp_path / "several", *LANGUAGE)
    assert "name one of the adapters in it: de, fr" in message
    beginning(tiny, records, "llama", tmp_path / "several" / "fr", *LANGUAGE)
