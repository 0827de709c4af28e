"""Adapters on disk in PEFT's layout, at full rank, at mixed ranks, padded, or merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedlora.errors import FedloraError
from fedlora.split.whole import load_whole
from fedlora.storage.files import json_line, replace_file

# PEFT's layout.
PREFIX = "base_model.model."
A_WEIGHT, B_WEIGHT = ".lora_A.weight", ".lora_B.weight"
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_ORDER = "projections"
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt")


@dataclass(frozen=True)
class Adapter:
    """The factors of all projections, and what PEFT must know of them.

    Attributes
    ----------
    factors
        By module name in the model that the adapter is for: A (r_max, d_in) and B (d_out, r_max).
    alpha
        Scaling numerator at r_max.
    base_model
        Folder or name of the model.
    task_type
        PEFT's task type; ``CAUSAL_LM`` for ``AutoModelForCausalLM``, ``FEATURE_EXTRACTION`` for
        ``AutoModel``.
    fan_in_fan_out
        Whether the modules store their weight transposed (GPT-2).
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    alpha: float
    base_model: str
    task_type: str
    fan_in_fan_out: bool = False

    @property
    def r_max(self) -> int:
        """Number of components of every projection."""
        return int(next(iter(self.factors.values()))[0].shape[0])

    def truncated(self, ranks: Sequence[int]) -> Adapter:
        """Return the adapter with components beyond each projection's rank set to zero."""
        factors = {}
        for (name, (A, B)), r in zip(self.factors.items(), self._checked(ranks), strict=True):
            keep = torch.arange(self.r_max) < r
            factors[name] = (A * keep[:, None], B * keep)
        return Adapter(factors, self.alpha, self.base_model, self.task_type, self.fan_in_fan_out)

    def save(self, folder: Path, ranks: Sequence[int] | None = None) -> None:
        """Write a folder that ``PeftModel.from_pretrained`` loads, each of its files as a whole.

        Parameters
        ----------
        folder
            Where to write; made if need be.
        ranks
            Rank of each projection; None keeps r_max everywhere. Mixed ranks are written with a
            pattern, scaled by alpha r / r_max, which keeps the scale alpha / r_max of training.
        """
        r_max = self.r_max
        chosen = self._checked(ranks) if ranks is not None else [r_max] * len(self.factors)
        kept = {name: r for name, r in zip(self.factors, chosen, strict=True) if r > 0}
        if not kept:
            raise FedloraError("every rank is 0, so there is no adapter to write; raise one")
        from peft import LoraConfig as PeftLoraConfig

        config = PeftLoraConfig(
            r=r_max,
            lora_alpha=self.alpha,
            target_modules=list(kept),
            rank_pattern={name: r for name, r in kept.items() if r != r_max},
            alpha_pattern={n: self.alpha * r / r_max for n, r in kept.items() if r != r_max},
            base_model_name_or_path=self.base_model,
            task_type=self.task_type,
            fan_in_fan_out=self.fan_in_fan_out,
            inference_mode=True,
        )
        tensors = {}
        for name, r in kept.items():
            A, B = self.factors[name]
            tensors[f"{PREFIX}{name}{A_WEIGHT}"] = A[:r].contiguous()
            tensors[f"{PREFIX}{name}{B_WEIGHT}"] = B[:, :r].contiguous()
        # What a run writes after each round may be cut off by its end, which PEFT's own writing of
        # the same dictionary does not survive.
        settings = {**config.to_dict(), "target_modules": list(kept)}
        replace_file(folder / CONFIG_FILE, json_line(settings, indent=2))
        # PEFT's own list of modules has no order, and a rank vector needs one.
        metadata = {"format": "pt", _ORDER: json.dumps(list(kept))}
        replace_file(folder / WEIGHTS_FILE, save(tensors, metadata))

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read a folder that ``save`` wrote at full rank.

        Raises
        ------
        FedloraError
            When it holds no such adapter.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
            with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
                factors = {
                    name: (
                        file.get_tensor(f"{PREFIX}{name}{A_WEIGHT}"),
                        file.get_tensor(f"{PREFIX}{name}{B_WEIGHT}"),
                    )
                    for name in json.loads(file.metadata()[_ORDER])
                }
            return cls(
                factors,
                config["lora_alpha"],
                config["base_model_name_or_path"],
                config["task_type"],
                bool(config["fan_in_fan_out"]),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise FedloraError(
                f"{folder} holds no adapter that can be read ({error}); give a finished run"
            ) from None

    def merge(self, folder: Path) -> None:
        """Write the whole model with the adapter added into its weights, and its tokenizer.

        Raises
        ------
        FedloraError
            When the model is no longer where it was.
        """
        import shutil
        import tempfile

        from peft import PeftModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            base = load_whole(Path(self.base_model), pooled=self.task_type != "CAUSAL_LM")
        except (OSError, ValueError) as error:
            raise FedloraError(
                f"the adapter's model {self.base_model!r} cannot be loaded "
                f"({str(error).partition(chr(10))[0]}); bring it back there, or export as peft"
            ) from None
        with tempfile.TemporaryDirectory() as place:
            self.save(Path(place))
            merged = PeftModel.from_pretrained(base, place).merge_and_unload()
        merged.save_pretrained(str(folder))
        for pattern in _TOKENIZER_FILES:
            for file in Path(self.base_model).glob(pattern):
                shutil.copy(file, folder)

    def _checked(self, ranks: Sequence[int]) -> Sequence[int]:
        if len(ranks) != len(self.factors) or not all(0 <= r <= self.r_max for r in ranks):
            raise FedloraError(
                f"{len(ranks)} ranks up to {max(ranks, default=0)} do not fit {len(self.factors)} "
                f"projections of r_max {self.r_max}"
            )
        return ranks
