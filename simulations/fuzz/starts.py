"""PEFT adapters for random scenarios to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlora.split import model_folder


def make_start(model: str, task: str, rank: object, assets: Path) -> Path:
    """Return the folder of a random adapter of a model, made when first asked for.

    Parameters
    ----------
    model
        ``model.path``.
    task
        ``task.kind``, which decides PEFT's names.
    rank
        Its rank, or ``"mixed"``: ranks and scales that differ by module, scaled by the root of the
        rank.
    assets
        Where it goes.
    """
    place = assets / "adapters" / f"{Path(model).name}-{task}-{rank}"
    if place.exists():
        return place
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    cls = AutoModelForCausalLM if task == "causal_lm" else AutoModel
    r = 2 if rank == "mixed" else int(str(rank))
    more: dict[str, Any] = {"use_rslora": True} if rank == "mixed" else {}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base = cls.from_pretrained(model_folder(model))
        if rank == "mixed":
            ends = sorted({n.rpartition(".")[2] for n, m in base.named_modules() if _linear(m)})
            more |= {"rank_pattern": {ends[0]: 1}, "alpha_pattern": {ends[0]: 3}}
        config = LoraConfig(
            r=r, lora_alpha=5, target_modules="all-linear", init_lora_weights=False, **more
        )
        adapted = get_peft_model(base, config)
        with torch.no_grad():  # a start that overturns the model would make training chaotic
            for name, factor in adapted.named_parameters():
                if "lora_B" in name:
                    factor.mul_(0.1)
        adapted.save_pretrained(str(place))
    return place


def _linear(module: object) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
