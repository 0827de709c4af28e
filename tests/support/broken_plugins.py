"""A folder of plug-ins as a stranger has it, and ways in which one of each kind is of no use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from fedlora.scaffold.write import PARTS, AppNames, write_app
from support.federation import add_tokenizer

KINDS = {
    "strategy": ("ranks.strategy={}",),
    "codec": ("link.activation={}", "link.representation={}", "link.gradient={}"),
    "average": ("robust.average={}", "robust.hostile=1"),
    "channel": ("channel.model={}",),
    "scheduler": ("channel.schedule.scheduler={}", "robust.average=median", "robust.hostile=1"),
    "predictor": ("channel.predict={}", "channel.report.lead_s=3", "channel.coherence_s=0.5"),
    "mechanism": ("privacy.release={}", "privacy.epsilon=8", "head.share=personal"),
    "task": ("task.kind={}", "data.test=", "partition.kind=iid"),
    "family": ("model.client_front=1",),  # the model names it
}
"""What a scenario says to have a plug-in of a kind; a class in place of the braces."""
OPTIONS = {
    "strategy": "ranks.options",
    "average": "robust.options",
    "channel": "channel.options",
    "scheduler": "channel.schedule.options",
}
"""Where a scenario has the options of a kind that takes some."""

RAISE, EXIT, LATER = "raises", "ends the process", "raises in the middle of a round"
_BODIES = {
    RAISE: "def {}(self, *_, **__):\n    raise KeyError('no\\nluck')",
    EXIT: "def {}(self, *_, **__):\n    raise SystemExit(0)",
    LATER: (
        "calls = 0\n\ndef {0}(self, *given, **named):\n    type(self).calls += 1\n"
        "    if type(self).calls > {1}:\n        raise KeyError('no luck')\n"
        "    return super().{0}(*given, **named)"
    ),
}
_ANY = ("None", "3", "'text'")
_WITH_GRADIENT = "torch.ones(2, requires_grad=True)"
_ANSWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "strategy": {
        "allocate": (*_ANY, "{'0': 3}"),
        "observe": (),
        "state_dict": ("'text'", "{'seen': {1}}"),
    },
    "codec": {
        "encode": (*_ANY, "{'': 3}", "{3: x}", "{'half': x}", "{'': x.to_sparse()}"),
        "decode": (*_ANY, "torch.zeros(2, 2)", "torch.zeros(shape).double()", "x_nan"),
    },
    "average": {
        "average": (*_ANY, "[torch.zeros(1)]", "zeros.long()", "zeros / 0"),
    },
    "channel": {
        "sample": (*_ANY, "Link(float('nan'), 3.0, 1e5)", "Link('text', 3.0, 1e5)"),
    },
    "scheduler": {
        "select": (*_ANY, "{}", "{0: 'text'}", "{'0': 1e5}", "{0: -1.0}"),
        "foresee": ("3", "'text'", "[99]", "[0, 0]", "[[0]]", "[]"),
        "observe": (),
        "state_dict": ("{'seen': {1}}",),
    },
    "predictor": {
        "predict": (*_ANY, "[1.0]", "[float('nan')] * 2", "[1j] * 2", "{}", _WITH_GRADIENT)
    },
    "mechanism": {
        "check": (),
        "plan": _ANY,
        "uploads": ("None",),
        "charge": _ANY,
        "width": (*_ANY[::2], "0"),
        "values": (*_ANY, "torch.zeros(1)"),
        "noised": (*_ANY, "torch.zeros(values.shape) / 0"),
        "gradients": _ANY,
        "cut": ("torch.zeros(1)",),
        "covers": _ANY,
        "excludes": _ANY,
    },
    "task": {
        "samples": (*_ANY, "[3]", "[Sample((), None, 7000)]", "[Sample((), None, 0)]"),
        "front": (*_ANY, "nn.Linear(3, 5)", "nn.Linear(9, width)"),
        "embed": (*_ANY, "torch.zeros(1, 2)", "front(torch.zeros(5 * len(samples), 3)) / 0"),
        "head": _ANY,
        "loss": (*_ANY, "TaskLoss(1.0, 1.0, z[:1])", "TaskLoss('text', 1.0, z)"),
        "measure": _ANY,
        "read_counts": (),
    },
    "family": {
        "misfit": ("3",),
        "embedding_scale": ("'text'",),
        "still_token": ("'text'",),
        "skip_embedding_stage": (),
    },
}
_CALLS = {"decode": 9, "encode": 9, "sample": 4, "select": 1, "average": 1, "loss": 2, "values": 2}
_CALLS |= {"samples": 8, "noised": 2, "embed": 9, "measure": 1, "allocate": 1, "predict": 4}
"""How many calls of a method come before one in the middle of a run."""


@dataclass(frozen=True)
class Broken:
    """A plug-in that is of no use.

    Attributes
    ----------
    kind
        Of ``KINDS``.
    fault
        What is wrong with it.
    code
        The body of its class, which inherits from a sound one.
    """

    kind: str
    fault: str
    code: str

    def __str__(self) -> str:
        return f"{self.kind} {self.fault}"


def broken_plugins() -> Iterator[Broken]:
    """Yield one for each kind, method and fault."""
    for kind, methods in _ANSWERS.items():
        for method, answers in methods.items():
            faults = [RAISE, EXIT, *([LATER] if method in _CALLS else [])]
            for fault in faults:
                code = _BODIES[fault].format(method, _CALLS.get(method, 0))
                yield Broken(kind, f"{fault} in {method}", code)
            for answer in answers:
                yield Broken(kind, f"returns {answer} from {method}", _answering(method, answer))
        yield Broken(kind, "raises when it is made", _BODIES[RAISE].format("__init__"))
        if kind in ("average", "mechanism", "task"):
            code = "def __init__(self, *_, **__):\n    pass"
            yield Broken(kind, "keeps nothing of what it is made with", code)
    for claim in ("prefix", "embedding", "layers", "causal", "final"):
        yield Broken("family", f"has 3 as {claim}", f"{claim} = 3")
    for claim in ("embedding", "layers"):
        yield Broken("family", f"has another {claim}", f"{claim} = 'nowhere'")
    for claim in ("pooled", "trains_head", "tokens"):
        yield Broken("task", f"has 3 as {claim}", f"{claim} = 3")


def _answering(method: str, answer: str) -> str:
    """Return a method that answers always the same; its arguments have the base class's names."""
    takes = {
        "encode": "x",
        "decode": "parts, shape",
        "average": "blocks, weights",
        "noised": "values, lengths, sigma, noise",
        "front": "checkpoint, dtype, width, seed",
        "embed": "front, samples",
        "loss": "head, z, samples, *, sample_mean",
    }.get(method, "*_, **__")
    before = ""
    if "x_nan" in answer:
        before = "    x_nan = torch.full(shape, float('nan'))\n"
    if "zeros" in answer and method == "average":
        before = "    zeros = [torch.zeros(block.values.shape[1:]) for block in blocks]\n"
        answer = f"[{answer.replace('zeros', 'own')} for own in zeros]"
    return f"def {method}(self, {takes}):\n{before}    return {answer}"


def write_plugins(folder: Path) -> Path:
    """Write a folder with a sound plug-in of each kind, as ``fedlora new`` does."""
    write_app(folder, AppNames("away", "away", "Away"), PARTS)
    task = folder / "away" / "task.py"
    task.write_text(task.read_text().replace("ROWS = 5, 3, 480", "ROWS = 5, 3, 60"))
    return folder


def write_model(folder: Path) -> Path:
    """Write a tiny model of the folder's family."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    add_tokenizer(folder, "gpt2")
    return folder


def class_of(kind: str) -> str:
    """Return ``module:Class`` of a sound one."""
    return f"away.{kind}:Away{'' if kind == 'strategy' else kind.capitalize()}"


def write_broken(folder: Path, broken: Broken) -> str:
    """Write a plug-in into a folder of sound ones, and return its ``module:Class``."""
    module, _, name = class_of(broken.kind).partition(":")
    code = broken.code.replace("\n", "\n    ")
    (folder / "broken.py").write_text(
        "import torch\nfrom torch import nn\n"
        "from fedlora.channel.models.base import Link\nfrom fedlora.tasks import Sample, TaskLoss\n"
        f"from {module} import {name}\n\n\nclass Broken({name}):\n    {code}\n"
    )
    if broken.kind == "family":
        register_family(folder, "broken:Broken")
    return "broken:Broken"


def register_family(folder: Path, name: str) -> None:
    """Let a folder's ``pyproject.toml`` name the family of ``gpt_neox``."""
    table = f'[project.entry-points."fedlora.families"]\ngpt_neox = {json.dumps(name)}\n'
    (folder / "pyproject.toml").write_text(table)


def settings_of(kind: str, name: str, folder: Path, model: Path) -> list[str]:
    """Return what a scenario says to have a plug-in of a folder."""
    settings = [setting.format(name) for setting in KINDS[kind]]
    return [f"python_path={folder}", *settings, *([f"model.path={model}"] * (kind == "family"))]


def copy_of(plugins: Path, target: Path) -> Path:
    """Copy a folder of plug-ins; what is known of a ``pyproject.toml`` is known by its folder."""
    shutil.copytree(plugins, target)
    return target
