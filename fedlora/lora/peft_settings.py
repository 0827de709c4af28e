"""What ``adapter_config.json`` of an adapter that PEFT saved says, field by field.

Each field either decides which matrices have factors, of which rank and at which scale; or has no
effect on what a saved adapter computes; or makes it more than A and B, which is refused. So is a
field that nobody here knows.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from fedlora.lora.export import CONFIG_FILE

KEY = "lora.start"
HEADS = ("classifier", "score")
"""What PEFT keeps beside the factors of a classifier by itself."""
TAKEN = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "modules_to_save"),
    }
)
WITHOUT_EFFECT = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version"),
        *("inference_mode", "lora_dropout", "runtime_config"),
        "fan_in_fan_out",  # PEFT goes by the module's own layout
        "megatron_core",  # counts beside megatron_config alone
        "qalora_group_size",  # beside use_qalora alone
        "ensure_weight_tying",  # concerns embeddings, of which no factors are taken
        # Of an initialisation, which the saved factors have behind them:
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)
REFUSED: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    **dict.fromkeys(
        (
            *("alora_invocation_tokens", "arrow_config", "kasa_config", "megatron_config"),
            *("monteclora_config", "trainable_token_indices", "use_bdlora", "velora_config"),
        ),
        (None,),
    ),
}
"""Fields that make an adapter more than A and B, each with the values that leave it off."""
PLAIN = "give an adapter of A and B alone"
_MERGED = "or merge it into its base with PEFT's merge_and_unload and set model.path to that model"
_UNMERGEABLE = ("alora_invocation_tokens", "arrow_config")
_KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftSettings:
    """Which matrices an adapter has factors for, of which rank and at which scale, as in PEFT.

    Parameters
    ----------
    folder
        The adapter's folder.

    Attributes
    ----------
    heads
        What it keeps whole beside its factors: a classifier's head, or nothing.

    Raises
    ------
    FedloraError
        When the file cannot be read, is of no LoRA adapter, says more than A and B can, or PEFT
        itself would not take it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        values = self._read()
        self.heads = self._heads(values.get("modules_to_save"))
        self._refuse_more(values)
        self._config = self._as_peft_reads(values)
        self._ranks = self._pattern("rank_pattern")
        self._alphas = self._pattern("alpha_pattern")

    @property
    def all_linear(self) -> bool:
        """Whether every linear module but the output has factors; PEFT writes their names."""
        return str(self._config.target_modules).lower() == "all-linear"

    def adapts(self, module: str) -> bool:
        """Tell whether PEFT gives factors to the linear module of that name."""
        from peft.tuners.tuners_utils import check_target_module_exists

        config = self._config
        if self.all_linear:
            config = copy.copy(config)
            config.target_modules = {module}
        return bool(self._matching(lambda: check_target_module_exists(config, module)))

    def rank(self, module: str) -> int:
        """Return the rank that PEFT gives a module."""
        rank = self._value(self._ranks, module, self._config.r)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise self._error(f"gives {module} the rank {rank!r}", "write a whole number from 1 on")
        return rank

    def scale(self, module: str) -> float:
        """Return what PEFT multiplies a module's product B A by."""
        alpha = self._value(self._alphas, module, self._config.lora_alpha)
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise self._error(f"gives {module} the alpha {alpha!r}", "write a finite number")
        rank = self.rank(module)
        return float(alpha) / (math.sqrt(rank) if self._config.use_rslora else rank)

    def undecided(self, module: str) -> bool:
        """Tell whether keys that give a module different alphas fit it, of which the first counts.

        PEFT sorts the keys in saving, so that it may be another than in training.
        """
        first = self._value(self._alphas, module, None)
        others = dict(self._alphas)
        while (key := self._key(others, module)) in others:
            if others.pop(key) != first:
                return True
        return False

    def _pattern(self, field: str) -> Mapping[str, Any]:
        pattern = getattr(self._config, field)
        if not isinstance(pattern, dict | None):
            raise self._error(f"has {field} = {json.dumps(pattern)[:80]}", "write a table, or {}")
        return pattern or {}

    def _value(self, pattern: Mapping[str, Any], module: str, otherwise: Any) -> Any:
        return pattern.get(self._key(pattern, module), otherwise)

    def _key(self, pattern: Mapping[str, Any], module: str) -> str:
        from peft.utils.other import get_pattern_key

        return str(self._matching(lambda: get_pattern_key(list(pattern), module)))

    def _matching(self, match: Any) -> Any:
        try:
            return match()
        except re.error as error:
            raise self._error(
                f"has {error.pattern!r}, which is no regular expression ({error.msg})", "mend it"
            ) from None

    def _read(self) -> dict[str, Any]:
        path = self._folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FedloraError(
                f"{KEY} {self._folder} cannot be read ({error}); copy it anew"
            ) from None
        if not isinstance(values, dict) or values.get("peft_type") != "LORA":
            kind = values.get("peft_type") if isinstance(values, dict) else None
            raise FedloraError(
                f"{KEY} {self._folder} is no LoRA adapter (its peft_type is {kind!r}); give one of "
                "peft_type LORA"
            )
        return values

    def _heads(self, modules: Any) -> tuple[str, ...]:
        if modules is None or modules == []:
            return ()
        if isinstance(modules, list) and set(map(str, modules)) <= set(HEADS):
            return tuple(sorted(set(modules)))
        raise self._error(
            f"was made with modules_to_save = {json.dumps(modules)}", f"{PLAIN}, {_MERGED}"
        )

    def _refuse_more(self, values: Mapping[str, Any]) -> None:
        for field, off in REFUSED.items():
            if field in values and values[field] not in off:
                raise self._error(
                    f"was made with {field} = {json.dumps(values[field])[:80]}",
                    PLAIN if field in _UNMERGEABLE else f"{PLAIN}, {_MERGED}",
                )
        start = values.get("init_lora_weights")
        if start is None or isinstance(start, bool) or str(start).lower() in _KEEP_BASE:
            return
        if str(start).lower().startswith(_CHANGE_BASE):
            # Of these alone PEFT finds the changed base again, without data or chance.
            merged = f", {_MERGED}" if start in ("pissa", "olora") else ""
            raise self._error(
                f"has init_lora_weights = {start!r}, which also changed the base model, and its A "
                "and B fit that base alone",
                "save it once more with save_pretrained(..., path_initial_model_for_weight_"
                "conversion=...), which makes it a LoRA adapter of the base as it is"
                f"{merged}",
            )
        raise self._error(
            f"has init_lora_weights = {start!r}, which neither fedlora nor PEFT "
            f"{_peft_version()} knows",
            "save it with true",
        )

    def _as_peft_reads(self, values: Mapping[str, Any]) -> Any:
        from peft import LoraConfig as PeftLoraConfig

        defaults = {
            field.name: None if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(PeftLoraConfig)
        }
        decided = TAKEN | WITHOUT_EFFECT | REFUSED.keys()
        for field in sorted(values.keys() - decided):
            value = values[field]
            if value not in (None, False, "", [], {}) and value != defaults.get(field):
                raise self._error(
                    f"has {field} = {json.dumps(value)[:80]} (peft_version "
                    f"{values.get('peft_version')!r}), which may change what it computes and which "
                    "fedlora does not know",
                    "save it without, or take the field out where it has no effect",
                )
        known = {field: values[field] for field in TAKEN & values.keys()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what has no effect here
                config = PeftLoraConfig(**{k: v for k, v in known.items() if k != "peft_type"})
        except (TypeError, ValueError) as error:
            raise self._error(f"is refused by PEFT itself ({error})", "save it anew") from None
        if not config.target_modules or isinstance(config.target_modules, dict):
            raise self._error(
                "names no target_modules", "write the names of the modules that it adapts"
            )
        return config

    def _error(self, what: str, mend: str) -> FedloraError:
        return FedloraError(f"{KEY} {self._folder} {what}; {mend}")


def _peft_version() -> str:
    return importlib.metadata.version("peft")
