"""Beginning from an adapter that there is: a PEFT folder, trained here or elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedlora.config import LoraConfig
from fedlora.errors import FedloraError
from fedlora.lora.export import A_WEIGHT, B_WEIGHT, CONFIG_FILE, PREFIX, WEIGHTS_FILE
from fedlora.split import resolve_path

if TYPE_CHECKING:  # layers bring PEFT, which checking a scenario need not load
    from fedlora.lora.layers import LoraProjection

_KEY = "lora.start"
_OTHERWISE = ("use_dora", "modules_to_save", "bias", "layer_replication")  # more than A and B

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def read_start(config: LoraConfig, names: Sequence[str]) -> Factors:
    """Read the adapter that ``lora.start`` names.

    Parameters
    ----------
    config
        Where it is, and the scale and rank it has to fit.
    names
        The adapted projections, as the base model or its checkpoint names them.

    Returns
    -------
    mapping
        For each projection that the adapter has, A (r, d_in) and B (d_out, r) in fp32, with r at
        most ``r_max``, and B such that alpha / r_max B A is the adapter's update.

    Raises
    ------
    FedloraError
        When there is no such folder, it holds no LoRA adapter in safetensors, or it adapts what
        ``lora.targets`` does not, or at a rank above ``lora.r_max``.
    """
    folder = resolve_path(config.start, "folder of a PEFT adapter", _KEY)
    settings, tensors = _read(folder)
    stored = {key.removesuffix(A_WEIGHT) for key in tensors if key.endswith(A_WEIGHT)}
    if (
        not stored
        or {name + end for name in stored for end in (A_WEIGHT, B_WEIGHT)} != tensors.keys()
    ):
        raise FedloraError(
            f"{_KEY} {folder} holds other tensors than LoRA factors; give one of LoRA"
        )
    factors = {}
    for own in sorted(stored):
        # Either may have the prefix of a model class with a head, such as ``model.``.
        matches = [n for n in names if f".{own}".endswith(f".{n}") or f".{n}".endswith(f".{own}")]
        if len(matches) != 1:
            raise FedloraError(
                f"{_KEY} {folder} adapts {own}, which lora.targets does not; add it there, "
                "or begin from an adapter of this model"
            )
        A, B = tensors[own + A_WEIGHT].float(), tensors[own + B_WEIGHT].float()
        r = len(A)
        if r > config.r_max:
            raise FedloraError(
                f"{_KEY} {folder} has rank {r} at {own}, which exceeds lora.r_max "
                f"{config.r_max}; raise lora.r_max"
            )
        scale = _pattern(settings, "alpha_pattern", "lora_alpha", own)
        scale /= math.sqrt(r) if settings.get("use_rslora") else r
        factors[matches[0]] = A, B * (scale * config.r_max / config.alpha)
    return factors


@torch.no_grad()
def start_from(projections: Sequence[LoraProjection], config: LoraConfig) -> None:
    """Put the adapter that ``lora.start`` names into the projections' first components.

    Components beyond its rank stay as they were drawn, with B = 0, so that they can be learned.

    Raises
    ------
    FedloraError
        As ``read_start`` does; also when its shapes are those of another model.
    """
    factors = read_start(config, [projection.name for projection in projections])
    for projection in projections:
        if projection.name not in factors:
            continue
        A, B = factors[projection.name]
        r = len(A)
        if A.shape[1] != projection.d_in or B.shape != (projection.d_out, r):
            raise FedloraError(
                f"{_KEY} {config.start} has {tuple(A.shape)} and {tuple(B.shape)} at "
                f"{projection.name}, which is {projection.d_in} to {projection.d_out}; begin from "
                "an adapter of this model"
            )
        projection.A[:r] = A.to(projection.A)
        projection.B[:, :r] = B.to(projection.B)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not (folder / WEIGHTS_FILE).is_file():
        raise FedloraError(
            f"{_KEY} {folder} has no {WEIGHTS_FILE}; give a folder that PEFT or fedlora export "
            "saved as safetensors"
        )
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise FedloraError(f"{_KEY} {folder} cannot be read ({error}); copy it anew") from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise FedloraError(f"{_KEY} {folder} is no LoRA adapter; give one of peft_type LORA")
    more = [key for key in _OTHERWISE if settings.get(key) not in (None, False, "none", [])]
    if more:
        raise FedloraError(
            f"{_KEY} {folder} was made with {', '.join(more)}; give an adapter of A and B alone"
        )
    return settings, {key.removeprefix(PREFIX): t for key, t in tensors.items()}


def _pattern(settings: Mapping[str, Any], pattern: str, otherwise: str, name: str) -> float:
    """Return a module's own setting where PEFT stored one by (a suffix of) its name."""
    own = settings.get(pattern) or {}
    found = [value for key, value in own.items() if f".{name}".endswith(f".{key}")]
    return float(found[0] if found else settings[otherwise])
