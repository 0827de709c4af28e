"""``check_family`` passes what is sound and names what is broken."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, StableLmConfig

from fedlora.split import family
from fedlora.split.check import check_family
from fedlora.split.families.bert import Bert
from fedlora.split.families.gpt2 import Gpt2
from fedlora.split.families.layer_norm import StableLm
from fedlora.split.families.llama import Llama


def test_a_family_that_ships_is_sound(checkpoints):
    """Of decoders the shipped one is tried by a sample in docs/extending.md."""
    assert check_family(checkpoints["bert"]) == []


class Scaled(Llama):
    def embedding_scale(self, config):
        return 2.0


class Misnamed(Llama):
    layers = "blocks"


class NoFinal(Llama):
    def final_stage(self, config, load):
        return torch.nn.Identity()


class Shifted(Gpt2):
    def first_position(self, config):
        return 2


class Twice(Gpt2):
    """Positions are added again where blocks begin in the middle."""

    def skip_embedding_stage(self, model):
        pass


class Exits(Llama):
    def embedding_scale(self, config):
        raise SystemExit(0)


class Encodes(Llama):
    causal = False


class Decodes(Bert):
    causal = True

    def final_stage(self, config, load):
        return torch.nn.Identity()


class Packs(StableLm):
    packs = True


@pytest.fixture(scope="module")
def stablelm(tmp_path_factory):
    sizes = {"vocab_size": 53, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    folder = tmp_path_factory.mktemp("stablelm")
    torch.manual_seed(0)
    config = StableLmConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("llama", Scaled, "embedding"),
        ("llama", Misnamed, "expected a family that fits"),
        ("llama", NoFinal, "expected at most 1e-05"),
        ("llama", Exits, "SystemExit at test_split_check.py"),
        ("gpt2", Shifted, "expected at most 1e-05"),
        ("gpt2", Twice, "states with client_front 1 and client_back 0 differ"),
        ("llama", Encodes, "no token changes the states before it, and causal is False"),
        ("bert", Decodes, "a token changes the states before it, and causal is True"),
        ("stablelm", Packs, "set packs to False"),
    ],
)
def test_a_broken_family_is_named_with_what_was_expected(
    checkpoints, stablelm, name, kind, words, monkeypatch
):
    monkeypatch.setattr(family, "names", lambda group: [name])
    monkeypatch.setattr(family, "resolve", lambda group, own, base: kind)
    findings = check_family({**checkpoints, "stablelm": stablelm}[name])
    assert findings and words in findings[0], findings
    assert not any("\n" in text for text in findings)
