"""Beginning from an adapter that there is: a PEFT folder, trained here or elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedlora.config import LoraConfig
from fedlora.errors import FedloraError
from fedlora.lora.export import CONFIG_FILE, WEIGHTS_FILE
from fedlora.lora.peft_settings import KEY, PLAIN, PeftSettings
from fedlora.lora.peft_tensors import AdapterReader, Start, some_names
from fedlora.split import Checkpoint, Cut, resolve_path

if TYPE_CHECKING:  # layers bring PEFT, which a scenario without an adapter need not load
    from fedlora.lora.layers import LoraProjection

log = logging.getLogger("fedlora.lora")


def read_start(config: LoraConfig, checkpoint: Checkpoint, cut: Cut, *, pooled: bool) -> Start:
    """Read the adapter that ``lora.start`` names: what ``PeftModel.from_pretrained`` makes of it.

    Parameters
    ----------
    config
        Where it is, and the scale, rank and targets that it has to fit.
    checkpoint, cut
        The base model, and which of its blocks carry adapters here.
    pooled
        Whether the task has a head of its own, so that the adapter's may be left out.

    Raises
    ------
    FedloraError
        When there is no such folder, it holds no LoRA adapter in safetensors or more than one is,
        PEFT would complete it with random numbers or leave a part of it out, or it adapts what
        ``lora.targets`` does not, or at a rank above ``lora.r_max``.
    """
    folder = resolve_path(config.start, "folder of a PEFT adapter", KEY)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FedloraError(f"{KEY} {folder} has no {WEIGHTS_FILE}; {_elsewhere(folder)}")
    settings = PeftSettings(folder)
    if settings.heads and not pooled:
        raise FedloraError(
            f"{KEY} {folder} was made with modules_to_save = {list(settings.heads)}, the head of a "
            f"classifier, which task.kind classification alone leaves out; {PLAIN}"
        )
    return AdapterReader(folder, settings, config, checkpoint, cut, pooled=pooled).read()


@torch.no_grad()
def start_from(
    projections: Sequence[LoraProjection],
    config: LoraConfig,
    checkpoint: Checkpoint,
    cut: Cut,
    *,
    pooled: bool,
) -> None:
    """Put the adapter that ``lora.start`` names into the projections' first components.

    Components beyond its rank stay as they were drawn, with B = 0, so that they can be learned.
    What a reader might miss is logged as a warning.

    Raises
    ------
    FedloraError
        As ``read_start`` does; also when its shapes are those of another model.
    """
    start = read_start(config, checkpoint, cut, pooled=pooled)
    for projection in projections:
        if projection.name not in start.factors:
            continue
        A, B = start.factors[projection.name]
        r = len(A)
        if A.shape[1] != projection.d_in or B.shape != (projection.d_out, r):
            raise FedloraError(
                f"{KEY} {config.start} has {tuple(A.shape)} and {tuple(B.shape)} at "
                f"{projection.name}, which is {projection.d_in} to {projection.d_out}; begin from "
                "an adapter of this model"
            )
        projection.A[:r] = A.to(projection.A)
        projection.B[:, :r] = B.to(projection.B)
    if start.left_out:
        log.warning(
            "%s %s is taken over without its head (%s); the clients begin with heads of their own",
            *(KEY, config.start, ", ".join(sorted(start.left_out))),
        )
    if start.undecided:
        log.warning(
            "%s %s: several keys of alpha_pattern fit %s and differ; the first in the file counts, "
            "as in PEFT, which sorts them in saving, so training may have gone by another",
            *(KEY, config.start, some_names(start.undecided)),
        )


def _elsewhere(folder: Path) -> str:
    """Say where else an adapter may be: PEFT saves those that are not called default below."""
    below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if below:
        return f"name one of the adapters in it: {some_names(below)}"
    return "give a folder that PEFT or fedlora export saved as safetensors"
