"""Every form in which a run's model leaves is the same model, and names nothing of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.federation import Federation, relative, scenario
from test_training_export import base_model, engine_output, mixed_ranks, model_output
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_to_toml
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder
from fedlora.server.results import export, write_results
from fedlora.split import slice_checkpoint
from fedlora.tasks import load_tokenizer

LANGUAGE = ["task.kind=causal_lm"]
TEMPLATE = "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}"
SHA = "0123456789abcdef0123456789abcdef01234567"
FORMS = ["peft", "padded", "gguf-ready", "merged"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def ran(folder: Path, model: Path | str, records: Path, *overrides: str) -> Federation:
    """Train for a round and leave a run's folder."""
    rates = ["train.lr=0.05", "train.rounds=1", "train.steps=2"]
    config = scenario(Path(model), records, *LANGUAGE, *rates, *overrides)
    federation = Federation(config).run()
    kept = RunFolder.create(folder)
    kept.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        kept.append_round(record)
    write_results(kept, federation.server, {})
    return federation


def read_one_alpha(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Add an adapter as llama.cpp does: one alpha over the rank of each matrix's own factors."""
    alpha = json.loads((folder / CONFIG).read_text())["lora_alpha"]
    tensors = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, A in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                B = tensors[name.replace(".lora_A.", ".lora_B.")]
                delta = alpha / B.shape[1] * (B @ A)
                target = model.get_submodule(module)
                target.weight += delta.T if isinstance(target, Conv1D) else delta
    return model


def stored_under_the_head_alone(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def chat_model(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "chat_template.jinja").write_text(TEMPLATE)
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tools.jinja").write_text("tools" + TEMPLATE)
    return target


def adapter_of(model: Path, target: Path) -> Path:
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(model)
    options = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    alphas = {r".*\.1\..*": 9}
    get_peft_model(base, LoraConfig(r=2, alpha_pattern=alphas, **options)).save_pretrained(target)
    return target


@pytest.mark.parametrize("case", ["tied head alone", "chat", "begun from an adapter", "conv1d"])
def test_training_infer_and_every_export_are_one_model(tiny, records, tmp_path, capsys, case):
    model, overrides = tiny["llama"], []
    if case == "tied head alone":
        model = stored_under_the_head_alone(tiny["llama-tied"], tmp_path / "model")
    elif case == "chat":
        model = chat_model(tiny["llama"], tmp_path / "model")
    elif case == "begun from an adapter":
        overrides = [f"lora.start={adapter_of(model, tmp_path / 'start')}"]
    else:
        model = tiny["gpt2"]
    federation = ran(tmp_path / "run", model, records, *overrides)
    engine = federation.server.engine
    expected = engine_output(federation, engine.full_ranks())
    assert relative(expected, engine_output(federation, engine.zero_ranks())) > 1e-3

    def base():
        return AutoModelForCausalLM.from_pretrained(model)

    for form in FORMS:
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    models = {form: PeftModel.from_pretrained(base(), tmp_path / form) for form in FORMS[:3]}
    models |= {"merged": merged, "llama.cpp": read_one_alpha(base(), tmp_path / "gguf-ready")}
    for form, found in models.items():
        assert relative(model_output(federation, found), expected) < 1e-5, form

    words = load_tokenizer(tmp_path / "merged")
    prompt = torch.tensor([[*words.opening, *words.encode("w7 w31", 8, special=False)]])
    ids = merged.generate(prompt, do_sample=False, max_new_tokens=6, pad_token_id=0)
    continued = words.decode(ids[0, prompt.shape[1] :].tolist())
    for place in ("run", "peft"):
        capsys.readouterr()
        infer_texts(tmp_path / place, ["w7 w31"], None, None, 6)
        said = capsys.readouterr().out.splitlines()[-1].split("\t")[1]
        assert said.split() == continued.split(), place
    if case == "chat":
        messages = [{"role": "user", "content": "w7"}]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        for name in (None, "tools"):
            filled = tokenizer.apply_chat_template(messages, chat_template=name, tokenize=False)
            assert filled == ("tools" if name else "") + "<s> w7 </s>"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_adapter_with_one_alpha_says_the_same_to_peft_and_to_readers_of_each_rank(
    tiny, records, tmp_path, family
):
    overrides = ["task.pool=cls"] if family == "bert" else LANGUAGE
    federation = Federation(
        scenario(tiny[family], records, "train.lr=0.05", "train.rounds=1", *overrides)
    ).run()
    adapter, engine = export(federation.server), federation.server.engine
    ranks = mixed_ranks(len(engine.projections))
    for number, chosen in enumerate([ranks, [min(r, 2) for r in ranks], [1] * len(ranks), None]):
        folder = tmp_path / str(number)
        adapter.save_with_one_alpha(folder, chosen)
        settings, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
        kept = chosen or [adapter.r_max] * len(ranks)
        assert settings["alpha_pattern"] == {}
        assert bool(settings["rank_pattern"]) == (len({*kept} - {0}) > 1)
        for (name, (A, B)), r in zip(adapter.factors.items(), kept, strict=True):
            a = tensors.get(f"base_model.model.{name}.lora_A.weight")
            assert (a is None) == (r == 0)
            if a is not None:
                b = tensors[f"base_model.model.{name}.lora_B.weight"]
                found = settings["lora_alpha"] / len(a) * (b @ a)
                right = adapter.alpha / adapter.r_max * (B[:, :r] @ A[:r])
                assert len(a) == b.shape[1] == r
                torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-8)
        base = base_model(federation)
        loaded = model_output(federation, PeftModel.from_pretrained(base, folder))
        assert relative(loaded, engine_output(federation, kept)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_is_exported_twice_gives_the_same_bytes(tiny, records, tmp_path, form):
    ran(tmp_path / "run", tiny["llama"], records)
    contents = []
    for number in range(4):
        out = tmp_path / str(number)
        export_run(tmp_path / "run", out, form, None, 2)
        contents.append({f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert all(content == contents[0] for content in contents)


def test_an_adapter_of_an_earlier_release_keeps_the_order_in_its_metadata(tiny, records, tmp_path):
    adapter = export(ran(tmp_path / "run", tiny["gpt2"], records).server)
    adapter.save(tmp_path / "old")
    settings = json.loads((tmp_path / "old" / CONFIG).read_text())
    del settings["revision"]
    settings["target_modules"].reverse()
    (tmp_path / "old" / CONFIG).write_text(json.dumps(settings))
    order = {"format": "pt", "projections": json.dumps(list(adapter.factors))}
    save_file(load_file(tmp_path / "old" / WEIGHTS), tmp_path / "old" / WEIGHTS, order)
    assert list(Adapter.load(tmp_path / "old").factors) == list(adapter.factors)


@pytest.fixture
def cached(tiny, tmp_path, monkeypatch) -> Path:
    """A model in a cache of the hub, whose newest commit is another than the first."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "home" / "hub" / "models--me--tiny"
    snapshot = repository / "snapshots" / SHA
    shutil.copytree(tiny["llama"], snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    return snapshot


@pytest.mark.parametrize("as_path", [False, True], ids=["name", "path"])
def test_a_model_of_the_hub_is_called_by_its_name_and_commit(
    cached, records, tmp_path, capsys, as_path
):
    model = cached if as_path else Path("me/tiny")
    federation = ran(tmp_path / "run", model, records)
    expected = engine_output(federation, federation.server.engine.full_ranks())
    # The hub has gone on since: what the adapter is for is the commit that it was trained on.
    newer = cached.parent / ("f" * 40)
    shutil.copytree(cached, newer)
    weights = load_file(newer / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, newer / "model.safetensors", {"format": "pt"})
    (cached.parents[1] / "refs" / "main").write_text(newer.name)

    for form in FORMS:
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
        for file in (tmp_path / form).rglob("*.json"):
            assert str(tmp_path / "home") not in file.read_text(), file
        if form != "merged":
            settings = json.loads((tmp_path / form / CONFIG).read_text())
            assert settings["base_model_name_or_path"] == "me/tiny"
            assert settings["revision"] == SHA
    facts = json.loads((tmp_path / "peft" / "fedlora.json").read_text())
    assert facts["model"] == ("hub:me/tiny" if as_path else "me/tiny")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(model_output(federation, merged), expected) < 1e-5

    said = []
    for place in ("run", "peft"):
        capsys.readouterr()
        infer_texts(tmp_path / place, ["w7 w31", "w40"], None, None, 6)
        said.append(capsys.readouterr().out)
    infer_texts(tmp_path / "peft", ["w7 w31", "w40"], None, None, 6, model=str(cached))
    assert said == [capsys.readouterr().out] * 2
    export(federation.server).merge(tmp_path / "alone")  # with no scenario beside it
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    assert relative(model_output(federation, alone), expected) < 1e-5


def test_a_run_of_before_names_a_folder_of_the_cache_and_its_export_the_model(
    cached, records, tmp_path
):
    federation = ran(tmp_path / "run", Path("me/tiny"), records)
    path = tmp_path / "run" / "adapter" / CONFIG
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(cached)}
    del settings["revision"]
    path.write_text(json.dumps(settings))
    expected = engine_output(federation, federation.server.engine.full_ranks())
    for form in ("peft", "merged"):
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(model_output(federation, merged), expected) < 1e-5
    settings = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("me/tiny", SHA)
    infer_texts(tmp_path / "peft", ["w7"], None, None, 2)


@pytest.mark.parametrize("form", ["peft", "padded", "gguf-ready"])
def test_a_run_begins_from_every_form_of_an_adapter(tiny, records, tmp_path, form):
    before = Federation(scenario(tiny["llama"], records, *LANGUAGE, "train.lr=0.05")).run()
    adapter, ranks = export(before.server), mixed_ranks(len(before.server.engine.projections))
    match form:
        case "peft":
            adapter.save(tmp_path, ranks)
        case "padded":
            adapter.truncated(ranks).save(tmp_path)
        case _:
            adapter.save_with_one_alpha(tmp_path, ranks)
    after = Federation(
        scenario(tiny["llama"], records, *LANGUAGE, f"lora.start={tmp_path}", "lora.alpha=5")
    )
    found = engine_output(after, after.server.engine.full_ranks())
    assert relative(found, engine_output(before, ranks)) < 1e-5


def test_an_edge_package_takes_the_chat_templates_along(tiny, tmp_path):
    model = chat_model(tiny["llama"], tmp_path / "model")
    slice_checkpoint(model, tmp_path / "package")
    messages = [{"role": "user", "content": "w7"}]
    for name in (None, "tools"):
        filled = [
            AutoTokenizer.from_pretrained(folder).apply_chat_template(
                messages, chat_template=name, tokenize=False
            )
            for folder in (model, tmp_path / "package")
        ]
        assert filled[0] == filled[1]
