"""The tensors of an adapter that PEFT saved: what is taken of them, and why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedlora.config import LoraConfig
from fedlora.errors import FedloraError
from fedlora.lora.export import A_WEIGHT, B_WEIGHT, PREFIX, WEIGHTS_FILE
from fedlora.lora.peft_settings import KEY, PLAIN, PeftSettings
from fedlora.lora.targets import choose_targets, linear_modules
from fedlora.split import Checkpoint, Cut, find_family, language_head, token_embedding

_HEAD, _POOLER = "lm_head", "pooler"


@dataclass
class Start:
    """An adapter to begin from.

    Attributes
    ----------
    factors
        For each projection that the adapter has, by the base model's name: A (r, d_in) and B
        (d_out, r) in fp32, with r at most ``r_max``, and B such that alpha / r_max B A is the
        adapter's update.
    left_out
        Modules of a classifier's head that are not taken over.
    undecided
        Modules whose alpha hangs on the order of ``alpha_pattern``, which PEFT loses in saving.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    undecided: list[str] = field(default_factory=list)


class AdapterReader:
    """Sorts the tensors of one adapter.

    Parameters
    ----------
    folder, settings
        Where it is, and what PEFT makes of it.
    config
        Scale, rank and targets that it has to fit.
    checkpoint, cut
        The base model, and which of its blocks carry adapters here.
    pooled
        Whether the task has a head of its own, so that the adapter's may be left out.
    """

    def __init__(
        self,
        folder: Path,
        settings: PeftSettings,
        config: LoraConfig,
        checkpoint: Checkpoint,
        cut: Cut,
        *,
        pooled: bool,
    ) -> None:
        self.folder, self.settings, self.config = folder, settings, config
        self.checkpoint, self.pooled = checkpoint, pooled
        self.family = find_family(checkpoint)
        self.start = Start()
        # Of modules, the base model's own names, without a class's prefix.
        everything = linear_modules(checkpoint, Cut(cut.blocks, 0, cut.blocks))
        held = linear_modules(checkpoint, cut)
        self.blocks = {self._base(name) for name in everything}
        self.held = {self._base(name) for name in held}
        self.targets = {self._base(name) for name in choose_targets(held, config.targets)}

    def read(self) -> Start:
        """Return what there is to begin from; raises as ``read_start`` does."""
        tensors = self._tensors()
        stored = self._adapted(tensors)
        if not stored:
            raise self._error("holds no LoRA factors of this model", "give an adapter of it")
        self._refuse_what_peft_reads_otherwise(stored)
        for own in sorted(stored):
            self._take(own, tensors[PREFIX + own + A_WEIGHT], tensors[PREFIX + own + B_WEIGHT])
        return self.start

    def _tensors(self) -> dict[str, torch.Tensor]:
        try:
            tensors: dict[str, torch.Tensor] = load_file(self.folder / WEIGHTS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._error(f"cannot be read ({error})", "copy it anew") from None
        for name, tensor in sorted(tensors.items()):
            if not name.startswith(PREFIX):
                raise self._error(
                    f"holds {name}, and PEFT loads names that begin with {PREFIX} alone",
                    "save it with PEFT's save_pretrained",
                )
            if not tensor.is_floating_point() or not tensor.float().isfinite().all():
                raise self._error(
                    f"holds {name} with values that are no finite numbers", "copy it anew"
                )
        return tensors

    def _adapted(self, tensors: Mapping[str, torch.Tensor]) -> set[str]:
        """Return the adapter's own names of the modules that it has factors for, in the blocks."""
        stored = set()
        for name in sorted(tensors):
            own = name.removeprefix(PREFIX)
            module = own.partition(".lora_")[0].partition(".base_layer.")[0]
            if self._is_head(own):
                self.start.left_out.add(module.removesuffix(".weight").removesuffix(".bias"))
            elif module == own:
                self._refuse_other(own, tensors[name])
            elif self._base(module) not in self.blocks:
                raise self._error(
                    f"adapts {module}, which is no matrix of this model's blocks",
                    "save it without, or begin from an adapter of this model",
                )
            elif not own.endswith((A_WEIGHT, B_WEIGHT)):
                raise self._more(own)
            elif not {PREFIX + module + A_WEIGHT, PREFIX + module + B_WEIGHT} <= tensors.keys():
                raise self._error(f"holds one factor of {module} alone", "copy it anew")
            else:
                stored.add(module)
        return stored

    def _is_head(self, own: str) -> bool:
        """Tell whether a tensor belongs to what a pooled task has of its own."""
        return self.pooled and (
            own.partition(".")[0] in self.settings.heads
            or self._base(own).partition(".")[0] == _POOLER
        )

    def _refuse_other(self, own: str, tensor: torch.Tensor) -> None:
        """Refuse what is no factor, but for a copy of an embedding that the base has as well."""
        module, _, kind = own.rpartition(".")
        base: torch.Tensor | None = None
        if kind == "weight" and self._base(module) == self.family.embedding:
            base = token_embedding(self.checkpoint, torch.float32)
        elif kind == "weight" and module == _HEAD and self.family.causal:
            base = language_head(self.checkpoint, torch.float32)
        if base is None:
            raise self._more(own)
        if not torch.equal(tensor.float(), base):
            raise self._error(
                f"holds {own} with other values than the base model, and PEFT would put them in "
                "its place",
                "begin from the base that it was trained on, or save it with "
                "save_embedding_layers=False",
            )

    def _refuse_what_peft_reads_otherwise(self, stored: Collection[str]) -> None:
        """Refuse factors that PEFT would not load, and modules that it would begin at random."""
        prefixed = {module.startswith(self.family.prefix) for module in stored}
        if len(prefixed) > 1:
            raise self._error(
                f"has names with and without {self.family.prefix}", "save it with one model's names"
            )
        prefix = self.family.prefix if prefixed.pop() else ""
        ignored = [module for module in sorted(stored) if not self.settings.adapts(module)]
        if ignored:
            raise self._error(
                f"holds factors of {some_names(ignored)}, which its target_modules leave out and "
                "PEFT would not load",
                "add them to target_modules in its adapter_config.json",
            )
        embedding = set() if self.settings.all_linear else {self.family.embedding}
        known = {prefix + module for module in self.blocks | embedding}
        missing = [m for m in sorted(known - set(stored)) if self.settings.adapts(m)]
        if missing:
            raise self._error(
                f"lacks the factors of {some_names(missing)}, which its target_modules name and "
                "PEFT would begin anew",
                "copy it anew, or take them out of target_modules in its adapter_config.json",
            )

    def _take(self, own: str, A: torch.Tensor, B: torch.Tensor) -> None:
        name = self._base(own)
        if name not in self.held:
            raise self._error(
                f"adapts {own}, which model.client_front or model.client_back leaves to the "
                "clients, whose blocks carry no LoRA",
                "lower it",
            )
        if name not in self.targets:
            raise self._error(
                f"adapts {own}, which lora.targets does not",
                "add it there, or begin from an adapter of this model",
            )
        A, B = A.float(), B.float()
        width = self.checkpoint.entries[self._stored(name)].shape
        if A.ndim != 2 or B.ndim != 2 or sorted(width) != sorted((A.shape[1], B.shape[0])):
            raise self._error(
                f"has {tuple(A.shape)} and {tuple(B.shape)} at {own}, whose weight is {width}",
                "begin from an adapter of this model",
            )
        r, expected = len(A), self.settings.rank(own)
        if r != B.shape[1] or r != expected:
            raise self._error(
                f"has rank {r} and {B.shape[1]} at {own}, where its rank_pattern and r say "
                f"{expected}, which PEFT does not load",
                "mend rank_pattern in its adapter_config.json (the first key that fits counts, and "
                "PEFT sorts them in saving), or copy it anew",
            )
        if r > self.config.r_max:
            raise self._error(
                f"has rank {r} at {own}, which exceeds lora.r_max {self.config.r_max}",
                "raise lora.r_max",
            )
        share = self.settings.scale(own) * self.config.r_max / self.config.alpha
        if self.settings.undecided(own):
            self.start.undecided.append(own)
        self.start.factors[name] = A, B * share

    def _base(self, name: str) -> str:
        return name.removeprefix(self.family.prefix)

    def _stored(self, name: str) -> str:
        prefixed = f"{self.family.prefix}{name}.weight"
        return prefixed if prefixed in self.checkpoint.entries else f"{name}.weight"

    def _more(self, own: str) -> FedloraError:
        return self._error(f"holds {own}, which is no factor of a LoRA projection", PLAIN)

    def _error(self, what: str, mend: str) -> FedloraError:
        return FedloraError(f"{KEY} {self.folder} {what}; {mend}")


def some_names(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
