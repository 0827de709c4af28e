"""Whether a checkpoint's ends compute here what Hugging Face's own code computes with them.

An edge process does without transformers, so the token embedding, the final norm and the head are
plain torch here. Where transformers is, they are compared with it once for each checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fedlora.errors import FedloraError
from fedlora.split.blocks import Blocks, Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.edge import Back, Front
from fedlora.split.embeddings import LanguageHead
from fedlora.split.family import find_family
from fedlora.split.layout import check_layout
from fedlora.split.manifest import Conformity
from fedlora.split.norms import RMSNorm
from fedlora.split.plain import LowRank, PlainLlama
from fedlora.storage import replace_file

_LENGTHS = [5, 3]
_BOUND = 1e-5  # fp32


def check_conformity(checkpoint: Checkpoint, *, language: bool = False) -> Conformity | None:
    """Refuse a checkpoint with which fedlora would compute other than Hugging Face.

    Parameters
    ----------
    checkpoint
        A whole one is compared once, and the result is kept in the user's cache; an edge package
        has what ``fedlora slice`` found (None, if an earlier release made it).
    language
        Whether the language head is to be used as well.

    Raises
    ------
    FedloraError
        When its tensors are not those of its configuration, or its ends differ by more than 1e-5.
    """
    found = checkpoint.manifest.conformity if checkpoint.manifest else _compared(checkpoint)
    if found is None:
        return None
    differs = {"embedding": found.states, "logits": (found.logits or 0.0) if language else 0.0}
    for what, by in differs.items():
        if not by <= _BOUND:
            family = type(find_family(checkpoint)).__name__
            raise FedloraError(
                f"{what} of {checkpoint.folder} differ by {by:.2g} from those of transformers "
                f"{found.transformers}: {family} is not the family of {checkpoint.model_type}; "
                "name one of its own, or take another model"
            )
    return found


def plain_llama(
    checkpoint: Checkpoint, low_rank: Mapping[str, LowRank] | None = None
) -> PlainLlama | None:
    """Return a checkpoint's base model in plain torch, if its first block is Hugging Face's.

    Parameters
    ----------
    checkpoint
        Is compared once; the result is kept in the user's cache.
    low_rank
        What an adapter adds to its projections.

    Returns
    -------
    PlainLlama or None
        None where Hugging Face's own code is to be used: for other models, and for one that differs
        by more than 1e-5.
    """
    model = PlainLlama.of(checkpoint, low_rank)
    if model is None:
        return None
    code = [Path(inspect.getfile(cls)).read_text() for cls in (PlainLlama, RMSNorm)]
    kept = _cache("plain", checkpoint, code)
    try:
        distance = float(json.loads(kept.read_text(encoding="utf-8"))["blocks"])
    except (OSError, ValueError, KeyError, TypeError):
        try:
            distance = compare_block(checkpoint)
        except (OSError, ValueError, TypeError, RuntimeError):  # which is told by who needs it
            return None
        with contextlib.suppress(FedloraError):
            replace_file(kept, json.dumps({"blocks": distance}).encode(), sync=False)
    return model if distance <= _BOUND else None


@torch.no_grad()
def compare_block(checkpoint: Checkpoint) -> float:
    """Return how far embedding, first block and final norm here are from transformers'."""
    ids, _, _ = _random_rows(checkpoint)
    model = _with_blocks(checkpoint, 1, language=False)
    return _distance(
        PlainLlama(checkpoint, 1)(ids), model(input_ids=ids[None]).last_hidden_state[0]
    )


def _compared(checkpoint: Checkpoint) -> Conformity:
    kept = _cache("conformity", checkpoint, _code(type(find_family(checkpoint))))
    found = _read(kept)
    if found is None:
        check_layout(checkpoint)
        found = compare(checkpoint)
        plain_llama(checkpoint)  # transformers is there now
        with contextlib.suppress(FedloraError):  # a cache that cannot be written is none
            replace_file(kept, json.dumps(asdict(found)).encode(), sync=False)
    return found


@torch.no_grad()
def compare(checkpoint: Checkpoint) -> Conformity:
    """Compute embedding stage, final stage and head of random tokens here and in transformers.

    Both leave out the blocks, which are Hugging Face's own code in any case.
    """
    head = None
    with contextlib.suppress(FedloraError):  # of no use as a language model
        head = LanguageHead.of(checkpoint, torch.float32)
    ids, rows, mask = _random_rows(checkpoint)
    model = _with_blocks(checkpoint, 0, language=head is not None)
    base = model.base_model if head else model
    expected = base(input_ids=rows, attention_mask=mask).last_hidden_state[mask.bool()]
    whole = Cut(checkpoint.blocks, 0, checkpoint.blocks)
    up = Front(checkpoint, whole, torch.float32)(ids, _LENGTHS)
    down = Blocks(checkpoint, 0, 0, final=True, dtype=torch.float32)(up, _LENGTHS)
    states = _distance(down, expected)
    if head is None:
        return Conformity(_transformers(), states, None)
    expected = model(input_ids=rows, attention_mask=mask).logits[mask.bool()]
    down = Blocks(checkpoint, 0, 0, final=False, dtype=torch.float32)(up, _LENGTHS)
    back = Back(checkpoint, whole, torch.float32, final=True)
    logits = _distance(head(back(down, _LENGTHS)), expected)
    return Conformity(_transformers(), states, logits)


def _random_rows(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return packed ids, ids in padded rows, and the rows' mask."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = checkpoint.size("vocab_size")
    ids = torch.randint(vocabulary, (sum(_LENGTHS),), generator=generator)
    ids[0], ids[1] = vocabulary - 1, 0
    # Models that count positions by the padding's id would count differently here.
    pad = checkpoint.config.get("pad_token_id")
    ids = torch.where(ids == pad, (ids + 1) % vocabulary, ids) if isinstance(pad, int) else ids
    rows = torch.full((len(_LENGTHS), max(_LENGTHS)), pad if isinstance(pad, int) else 0)
    mask = torch.zeros_like(rows)
    for row, part in enumerate(torch.split(ids, _LENGTHS)):
        rows[row, : len(part)] = part
        mask[row, : len(part)] = 1
    return ids, rows, mask


def _with_blocks(checkpoint: Checkpoint, count: int, *, language: bool) -> Any:
    """Return the model with its first blocks, as transformers loads it, tied or not by its rule."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint.folder)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    cls = AutoModelForCausalLM if language else AutoModel
    with quiet():
        model = cls.from_pretrained(checkpoint.folder, config=config, dtype=torch.float32)
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from telling of the blocks that it does not load."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    size = theirs.norm()  # 0 of weights that are all zeros, whose shapes alone are looked at
    return float(torch.dist(ours, theirs) / size if size else ours.norm())


def _cache(kind: str, checkpoint: Checkpoint, code: Sequence[str]) -> Path:
    """Return the file of a checkpoint's result: of its digests, our code and transformers'."""
    digest = hashlib.sha256()
    parts = (checkpoint.weights_digest, checkpoint.config_digest, _transformers())
    for part in (*parts, *code):
        digest.update(part.encode() + b"\0")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "fedlora" / kind / f"{digest.hexdigest()[:32]}.json"


@functools.lru_cache(maxsize=64)
def _code(family: type) -> list[str]:
    """Return the code that a result depends on.

    Whole files: what a family says may come from beside its class.
    """
    classes = (*family.__mro__[:-2], Front, Blocks, LanguageHead)
    return [Path(file).read_text() for file in dict.fromkeys(map(inspect.getfile, classes))]


def _read(path: Path) -> Conformity | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Conformity(str(values["transformers"]), float(values["states"]), values["logits"])
        return None if math.isnan(found.states) else found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _transformers() -> str:
    return importlib.metadata.version("transformers")
