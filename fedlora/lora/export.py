"""Adapters on disk in PEFT's layout, at full rank, at mixed ranks, padded, or merged.

Of each file the same adapter gives the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedlora.errors import FedloraError
from fedlora.split import copy_tokenizer, load_whole, model_folder, published_name
from fedlora.storage import json_line, replace_file

# PEFT's layout.
PREFIX = "base_model.model."
A_WEIGHT, B_WEIGHT = ".lora_A.weight", ".lora_B.weight"
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_ORDER = "projections"
"""Where releases before 0.2 kept the order of the projections, in the weights' metadata."""

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


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
        Folder of the model, or its name on the hub.
    task_type
        PEFT's task type; ``CAUSAL_LM`` for ``AutoModelForCausalLM``, ``FEATURE_EXTRACTION`` for
        ``AutoModel``.
    fan_in_fan_out
        Whether the modules store their weight transposed (GPT-2).
    revision
        The model's commit on the hub; None where it is a folder.
    head
        Name and weight of a linear head that goes along (PEFT's ``modules_to_save``).
    also
        Norms and positions that were trained whole, by name; they go along in the same way.
    beside
        The base's own tensors of modules that readers take for those of ``also``; see
        ``namesakes``.
    """

    factors: Factors
    alpha: float
    base_model: str
    task_type: str
    fan_in_fan_out: bool = False
    revision: str | None = None
    head: tuple[str, torch.Tensor] | None = None
    also: Mapping[str, torch.Tensor] = field(default_factory=dict)
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def r_max(self) -> int:
        """Number of components of every projection."""
        return int(next(iter(self.factors.values()))[0].shape[0])

    @property
    def version(self) -> str:
        """Digest of all factors, and of norms and positions, in their order and in fp32."""
        digest = hashlib.sha256()
        factors = itertools.chain.from_iterable(self.factors.values())
        for factor in itertools.chain(factors, (self.also[name] for name in sorted(self.also))):
            digest.update(factor.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def truncated(self, ranks: Sequence[int]) -> Adapter:
        """Return the adapter with components beyond each projection's rank set to zero."""
        factors = {}
        for (name, (A, B)), r in zip(self.factors.items(), self._checked(ranks), strict=True):
            keep = torch.arange(self.r_max) < r
            factors[name] = (A * keep[:, None], B * keep)
        return replace(self, factors=factors)

    def in_classifier(self, prefix: str, name: str, weight: torch.Tensor) -> Adapter:
        """Return the adapter of a base model as that of a classifier around it, with its head.

        Parameters
        ----------
        prefix
            What the classifier puts before the names of the base model's modules.
        name, weight
            Of the head.
        """
        factors = {prefix + own: pair for own, pair in self.factors.items()}
        also, beside = (
            {prefix + own: tensor for own, tensor in tensors.items()}
            for tensors in (self.also, self.beside)
        )
        return replace(
            self,
            factors=factors,
            task_type="SEQ_CLS",
            head=(name, weight),
            also=also,
            beside=beside,
        )

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
        factors = self._at(self._checked(ranks) if ranks is not None else [r_max] * self._count)
        own = {name: len(A) for name, (A, _) in factors.items() if len(A) != r_max}
        alphas = {name: self.alpha * r / r_max for name, r in own.items()}
        self._write(folder, factors, r_max, self.alpha, own, alphas)

    def low_rank(self, ranks: Sequence[int]) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
        """Return A, B and scale of each projection with a rank, as PEFT reads them of ``save``."""
        if not any(ranks):
            return {}
        return {
            name: (A, B, self.alpha * len(A) / self.r_max / len(A))
            for name, (A, B) in self._at(self._checked(ranks)).items()
        }

    def save_with_one_alpha(self, folder: Path, ranks: Sequence[int] | None = None) -> None:
        """Write the adapter for readers that know one alpha and divide it by each matrix's rank.

        So does llama.cpp, whose converter reads neither ``rank_pattern`` nor ``alpha_pattern``
        (``convert_lora_to_gguf.py``; ``get_scale`` in ``llama-adapter.h``): a matrix's scale is
        ``lora_alpha`` over the rank of its own factors. B is scaled by what that leaves. PEFT comes
        to the same, since ``rank_pattern`` tells it the ranks; readers that divide by r everywhere,
        such as vLLM, do so where all ranks are equal only, and need ``truncated``.

        Parameters
        ----------
        folder, ranks
            As in ``save``.
        """
        if self.also:
            raise FedloraError(
                f"the run trained {len(self.also)} norms and positions (lora.also), and readers "
                "that know one alpha take A and B alone; export as merged, and convert that"
            )
        r_max = self.r_max
        factors = self._at(self._checked(ranks) if ranks is not None else [r_max] * self._count)
        r = max(len(A) for A, _ in factors.values())
        scaled = {name: (A, B * (len(A) / r)) for name, (A, B) in factors.items()}
        own = {name: len(A) for name, (A, _) in factors.items() if len(A) != r}
        self._write(folder, scaled, r, self.alpha * r / r_max, own, {})

    def _at(self, ranks: Sequence[int]) -> Factors:
        """Return the first components of the projections that have any."""
        kept = {
            name: (A[:r].contiguous(), B[:, :r].contiguous())
            for (name, (A, B)), r in zip(self.factors.items(), ranks, strict=True)
            if r > 0
        }
        if not kept:
            raise FedloraError("every rank is 0, so there is no adapter to write; raise one")
        return kept

    def _write(
        self,
        folder: Path,
        factors: Factors,
        r: int,
        alpha: float,
        ranks: Mapping[str, int],
        alphas: Mapping[str, float],
    ) -> None:
        from peft import LoraConfig as PeftLoraConfig

        names = list(factors)
        saved = {_module(name): None for name in self.also}
        if self.head:
            saved[self.head[0]] = None
        config = PeftLoraConfig(
            r=r,
            lora_alpha=alpha,
            target_modules=names,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            base_model_name_or_path=self.base_model,
            revision=self.revision,
            task_type=self.task_type,
            fan_in_fan_out=self.fan_in_fan_out,
            modules_to_save=list(saved) or None,
            inference_mode=True,
        )
        # What a run writes after each round may be cut off by its end, which PEFT's own writing of
        # the same dictionary does not survive; nor does it keep the order of the modules, which
        # rank vectors follow.
        settings = {**config.to_dict(), "target_modules": names}
        replace_file(folder / CONFIG_FILE, json_line(settings, indent=2))
        tensors = {}
        for name, (A, B) in factors.items():
            tensors[f"{PREFIX}{name}{A_WEIGHT}"] = A
            tensors[f"{PREFIX}{name}{B_WEIGHT}"] = B
        whole = {**self.also, **{n: self.beside[n] for n in namesakes(self.beside, self.also)}}
        tensors |= {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in whole.items()}
        if self.head:
            tensors[f"{PREFIX}{self.head[0]}.weight"] = self.head[1]
        # With a second key safetensors writes them in another order each time.
        replace_file(folder / WEIGHTS_FILE, save(tensors, {"format": "pt"}))

    @classmethod
    def load(cls, folder: Path, *, takes_also: bool = False) -> Adapter:
        """Read a folder that ``save`` wrote at full rank.

        Parameters
        ----------
        folder
            Where it is.
        takes_also
            Whether the caller makes use of norms and positions, too.

        Raises
        ------
        FedloraError
            When it holds no such adapter, or norms and positions that the caller would leave out.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
            with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
                order = (file.metadata() or {}).get(_ORDER)
                factors = {
                    name: (
                        file.get_tensor(f"{PREFIX}{name}{A_WEIGHT}"),
                        file.get_tensor(f"{PREFIX}{name}{B_WEIGHT}"),
                    )
                    for name in (json.loads(order) if order else config["target_modules"])
                }
                whole = {
                    name.removeprefix(PREFIX): file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118 - no mapping
                    if not name.endswith((A_WEIGHT, B_WEIGHT))
                }
            saved = set(config.get("modules_to_save") or ())
            also = {n: t for n, t in whole.items() if _module(n) in saved}
            name, revision = config["base_model_name_or_path"], config.get("revision")
            if revision is None:  # of a release that wrote where the hub's cache lies
                name, revision = published_name(name, Path(name))
            loaded = cls(
                factors,
                config["lora_alpha"],
                name,
                config["task_type"],
                bool(config["fan_in_fan_out"]),
                revision,
                also=also,
                beside={n: t for n, t in whole.items() if n not in also},
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            files = (CONFIG_FILE, WEIGHTS_FILE)
            lacks = [f"there is no {name}" for name in files if not (folder / name).exists()]
            reason = lacks[0] if lacks else error
            raise FedloraError(
                f"{folder} holds no adapter that can be read ({reason}); give a finished run"
            ) from None
        if also and not takes_also:
            raise FedloraError(
                f"{folder} holds {len(also)} norms and positions that its run trained (lora.also), "
                "and this takes A and B alone; use fedlora export"
            )
        return loaded

    def source(self, model: str = "") -> Path:
        """Return the folder of the model that the adapter is for.

        Parameters
        ----------
        model
            Where the model is, where ``base_model`` does not tell.

        Raises
        ------
        FedloraError
            When the model is no longer where it was.
        """
        named = f"hub:{self.base_model}" if self.revision else self.base_model
        try:
            return model_folder(model or named, self.revision)
        except (OSError, ValueError, FedloraError) as error:
            raise self._lost(error) from None

    def merge(
        self,
        folder: Path,
        model: str = "",
        finish: Callable[[Any, Path], Any] | None = None,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        """Write the whole model with the adapter added into its weights, and its tokenizer.

        Parameters
        ----------
        folder
            Where to write.
        model
            Where the model is, where ``base_model`` does not tell.
        finish
            Given the merged model and the folder that it came from, makes what is written, and
            writes the tokenizer.
        prepare
            Changes the model in place before the adapter is added.

        Raises
        ------
        FedloraError
            When the model is no longer where it was.
        """
        import tempfile

        from peft import PeftModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        source = self.source(model)
        try:
            base = load_whole(source, pooled=self.task_type != "CAUSAL_LM")
        except (OSError, ValueError, FedloraError) as error:
            raise self._lost(error) from None
        if prepare is not None:
            prepare(base)
        with tempfile.TemporaryDirectory() as place:
            self.save(Path(place))
            merged = PeftModel.from_pretrained(base, place).merge_and_unload()
        if finish is None:
            copy_tokenizer(source, folder)
        else:
            merged = finish(merged, source)
        merged.save_pretrained(str(folder))

    def _lost(self, error: Exception) -> FedloraError:
        return FedloraError(
            f"the adapter's model {self.base_model!r} cannot be loaded "
            f"({str(error).partition(chr(10))[0]}); bring it back there, or export as peft"
        )

    @property
    def _count(self) -> int:
        return len(self.factors)

    def _checked(self, ranks: Sequence[int]) -> Sequence[int]:
        if len(ranks) != len(self.factors) or not all(0 <= r <= self.r_max for r in ranks):
            raise FedloraError(
                f"{len(ranks)} ranks up to {max(ranks, default=0)} do not fit {len(self.factors)} "
                f"projections of r_max {self.r_max}"
            )
        return ranks


def namesakes(names: Iterable[str], also: Collection[str]) -> list[str]:
    """Return which other tensors are of modules that PEFT takes for those of ``Adapter.also``.

    PEFT wraps every module whose name ends as one of ``modules_to_save`` does (``_set_trainable``
    in ``peft/utils/other.py``), and refuses an adapter that lacks the weights of one: ``norm`` of
    Llama's backbone is the end of ``layers.0.input_layernorm``, too.

    Parameters
    ----------
    names
        Of tensors of the base model.
    also
        Names of what was trained whole.
    """
    ends = tuple({_module(name) for name in also})
    return [name for name in names if name not in also and _module(name).endswith(ends)]


def _module(name: str) -> str:
    """Return the module that a parameter is of."""
    return name.rpartition(".")[0]
