"""A checkpoint with which fedlora would compute other than Hugging Face is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    StableLmConfig,
)

from fedlora.errors import FedloraError
from fedlora.split import (
    Checkpoint,
    LanguageHead,
    check_conformity,
    conformity,
    family,
    language_head,
    slice_checkpoint,
    token_embedding,
)
from fedlora.split.families.llama import Llama

SMALL = {"vocab_size": 53, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["llama"], tmp_path / "model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(folder: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def change(folder: Path, how: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **keys: object) -> None:
    """Change the configuration's keys; those set to Ellipsis are taken out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    "config",
    [
        StableLmConfig(**SMALL, intermediate_size=24, num_key_value_heads=2),
        CohereConfig(**SMALL, intermediate_size=24, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ],
)
def test_a_look_alike_under_anothers_family_is_refused_for_its_logits(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(family, "names", lambda group: [config.model_type])
    monkeypatch.setattr(family, "resolve", lambda group, name, base: Llama)
    checkpoint = Checkpoint(write(tmp_path / "model", config))
    check_conformity(checkpoint)  # where the server runs the final stage, all is well
    with pytest.raises(FedloraError, match=f"logits of .* Llama is not .* of {config.model_type}"):
        check_conformity(checkpoint, language=True)


class Louder(Llama):
    def embedding_scale(self, config: family.Config) -> float:
        return 2.0


def test_an_embedding_stage_that_differs_is_refused_for_any_task(folder, monkeypatch):
    monkeypatch.setattr(family, "resolve", lambda group, name, base: Louder)
    with pytest.raises(FedloraError, match=r"embedding of .* Louder is not the family"):
        check_conformity(Checkpoint(folder))


def test_a_checkpoint_is_compared_once(folder, monkeypatch):
    first = check_conformity(Checkpoint(folder), language=True)
    monkeypatch.delattr(conformity, "compare")
    assert check_conformity(Checkpoint(folder), language=True) == first
    change(folder, lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(NameError):  # another checkpoint is compared anew
        check_conformity(Checkpoint(folder))


def test_it_is_compared_anew_when_anything_in_its_familys_file_has_changed(
    folder, tmp_path, monkeypatch
):
    code = "from fedlora.split.families.llama import Llama\n\n\nclass Own(Llama):\n"
    code += "    def embedding_scale(self, config):\n        return SCALE\n\n\n"

    def check(scale: float) -> None:
        (tmp_path / "own_family.py").write_text(f"{code}SCALE = {scale}\n")
        spec = importlib.util.spec_from_file_location("own_family", tmp_path / "own_family.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own_family", module)
        exec((tmp_path / "own_family.py").read_text(), vars(module))
        monkeypatch.setattr(family, "resolve", lambda group, name, base: module.Own)
        check_conformity(Checkpoint(folder))

    check(1.0)
    with pytest.raises(FedloraError, match=r"embedding of .* Own is not the family"):
        check(2.0)


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert check_conformity(Checkpoint(folder)) is not None


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"transformers": "5", "states": "none"}'])
def test_a_damaged_cache_is_done_without(folder, damage):
    expected = check_conformity(Checkpoint(folder))
    (kept,) = (Path(conformity.os.environ["XDG_CACHE_HOME"]) / "fedlora/conformity").iterdir()
    kept.write_bytes(damage)
    assert check_conformity(Checkpoint(folder)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.3.input_layernorm.weight",
    ],
)
def test_a_tensor_of_another_shape_is_refused_by_name(folder, name):
    def longer(tensors: Tensors) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

    change(folder, longer)
    with pytest.raises(FedloraError, match=f"{name} in .* has shape .* and config.json makes it"):
        check_conformity(Checkpoint(folder))


def test_a_resized_vocabulary_is_refused_with_the_size_to_set(folder):
    configure(folder, vocab_size=99)
    for read in (token_embedding, language_head):
        with pytest.raises(FedloraError, match=r"\(101, 32\).*\(99, 32\); set vocab_size to 101"):
            read(Checkpoint(folder), torch.float32)
    with pytest.raises(FedloraError, match="set vocab_size to 101"):
        check_conformity(Checkpoint(folder))


def test_a_tensor_that_is_lacking_is_refused_by_name(folder):
    change(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(FedloraError, match=r"has no tensor layers.2.mlp.up_proj.weight"):
        check_conformity(Checkpoint(folder))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",  # a bias that the configuration does not speak of
        "model.layers.0.self_attn.q_proj.weight_scale_inv",  # scales beside weights
        "model.layers.4.mlp.up_proj.weight",  # a block too many
        "model.embed_positions.weight",
    ],
)
def test_a_tensor_without_a_place_in_the_model_is_refused_by_name(folder, name):
    change(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    if name == "model.embed_positions.weight":  # of no part of the model: perhaps some head's
        check_conformity(Checkpoint(folder))
        return
    with pytest.raises(FedloraError, match=f"holds {name}, for which .* no place"):
        check_conformity(Checkpoint(folder))


@pytest.mark.parametrize("name", ["score.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"])
def test_other_heads_and_what_earlier_releases_wrote_are_passed_over(folder, name):
    change(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    check_conformity(Checkpoint(folder), language=True)


def test_two_names_of_one_tensor_are_refused(folder):
    def double(tensors: Tensors) -> None:
        tensors["norm.weight"] = tensors["model.norm.weight"] + 1

    change(folder, double)
    with pytest.raises(FedloraError, match=r"both model.norm.weight and norm.weight"):
        check_conformity(Checkpoint(folder))


def test_a_tensor_in_two_shards_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    for number in (1, 2):
        save_file(tensors, folder / f"{number}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    halves = {name: f"{1 + place % 2}.safetensors" for place, name in enumerate(tensors)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": halves}))
    with pytest.raises(FedloraError, match=r"is in 1.safetensors and in 2.safetensors"):
        Checkpoint(folder)


FAMILIES = {
    "llama": LlamaConfig(**SMALL, intermediate_size=24),  # untied unless it says so
    "gpt2": GPT2Config(vocab_size=53, n_embd=16, n_layer=2, n_head=2),  # tied unless it says no
    "opt": OPTConfig(**SMALL, ffn_dim=24),
}
HEAD = "lm_head.weight"


def use_both(checkpoint: Checkpoint) -> None:
    token_embedding(checkpoint, torch.float32)
    language_head(checkpoint, torch.float32)


@pytest.mark.parametrize("stored", ["both", "equal", "embedding", "head"])
@pytest.mark.parametrize("said", [True, False, ...], ids=["tied", "untied", "unsaid"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_heads_are_tied_untied_or_refused_as_transformers_decides(kind, said, stored, tmp_path):
    folder = write(tmp_path / "model", FAMILIES[kind])
    embedding = next(
        name
        for name in load_file(folder / "model.safetensors")
        if name.endswith(("embed_tokens.weight", "wte.weight"))
    )

    def store(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[embedding] + (0 if stored == "equal" else 1)
        if stored in ("embedding", "head"):
            tensors.pop(HEAD if stored == "embedding" else embedding)

    change(folder, store)
    configure(folder, tie_word_embeddings=said)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if found["missing_keys"]:
        with pytest.raises(FedloraError, match=r"no tensor|neither"):
            use_both(Checkpoint(folder))
        return
    checkpoint = Checkpoint(folder)
    assert torch.equal(
        token_embedding(checkpoint, torch.float32), model.get_input_embeddings().weight
    )
    assert torch.equal(language_head(checkpoint, torch.float32), model.lm_head.weight)
    check_conformity(checkpoint, language=True)


def test_a_norm_without_weights_normalises(tmp_path):
    config = OPTConfig(**SMALL, ffn_dim=24, enable_bias=False, layer_norm_elementwise_affine=False)
    found = check_conformity(Checkpoint(write(tmp_path / "model", config)), language=True)
    assert found is not None
    assert found.logits == 0.0


def test_an_edge_package_carries_the_result_and_needs_no_transformers(
    folder, tmp_path, monkeypatch
):
    whole = check_conformity(Checkpoint(folder), language=True)
    slice_checkpoint(folder, tmp_path / "edge")
    monkeypatch.delattr(conformity, "compare")
    package = Checkpoint(tmp_path / "edge")
    assert check_conformity(package, language=True) == whole
    assert LanguageHead.of(package, torch.float32).weight.shape == (101, 32)


def test_a_package_whose_logits_differ_is_refused_on_the_device(tmp_path, monkeypatch):
    config = StableLmConfig(**SMALL, intermediate_size=24, num_key_value_heads=2)
    folder = write(tmp_path / "model", config)
    with monkeypatch.context() as patched:
        patched.setattr(family, "names", lambda group: [config.model_type])
        patched.setattr(family, "resolve", lambda group, name, base: Llama)
        slice_checkpoint(folder, tmp_path / "edge")  # it may do for classification
    with pytest.raises(FedloraError, match="logits of"):
        check_conformity(Checkpoint(tmp_path / "edge"), language=True)


def test_a_package_of_an_earlier_release_is_still_read(folder, tmp_path):
    slice_checkpoint(folder, tmp_path / "edge")
    manifest = tmp_path / "edge" / "edge.json"
    values = json.loads(manifest.read_text())
    values.pop("conformity")
    manifest.write_text(json.dumps(values))
    assert check_conformity(Checkpoint(tmp_path / "edge")) is None


def test_a_checkpoint_that_is_refused_makes_no_package(folder, tmp_path):
    change(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(FedloraError, match="has no tensor"):
        slice_checkpoint(folder, tmp_path / "edge")
    assert not (tmp_path / "edge").exists()


def read_sizes(checkpoint: Checkpoint) -> None:
    assert checkpoint.blocks
    token_embedding(checkpoint, torch.float32)


@pytest.mark.parametrize("value", [..., None, 0, -1, "32", True, 1.5])
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_size_that_is_none_is_refused_with_its_key(folder, key, value):
    configure(folder, **{key: value})
    checkpoint = Checkpoint(folder)
    with pytest.raises(FedloraError, match=rf"config.json has .* as its {key}"):
        read_sizes(checkpoint)


@pytest.mark.parametrize(
    "keys",
    [{"tie_word_embeddings": None}, {"num_attention_heads": 5}, {"hidden_act": "no such thing"}],
)
def test_a_configuration_that_transformers_refuses_is_refused_in_a_sentence(folder, keys):
    configure(folder, **keys)
    with pytest.raises(FedloraError, match=r"transformers refuses .*config.json \(\w+: .*mend it"):
        check_conformity(Checkpoint(folder))
