"""Try a model family on a checkpoint, beside transformers' own code, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fedlora.errors import FedloraError, described
from fedlora.split.blocks import Blocks, Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.conformity import compare, quiet
from fedlora.split.edge import Back, Front
from fedlora.split.family import find_family
from fedlora.split.layout import check_layout
from fedlora.split.resolve import model_folder

_LENGTHS = [6, 3, 4]
_BOUND = 1e-5  # relative, fp32


def check_family(folder: str | Path) -> list[str]:
    """Try the family that serves a checkpoint: its ends, its cuts, its rows, and what it claims.

    Small models with random weights will do, and find more than trained ones if no weight is 0 or
    1, as those of norms are at first. The model is computed whole by transformers, so it has to
    fit into memory.

    Parameters
    ----------
    folder
        As ``model.path`` names a model.

    Returns
    -------
    list of str
        One sentence for each finding of the first kind that there is: what happened, and what was
        expected. Empty if nothing speaks against the family. Generation is not tried.

    Raises
    ------
    FedloraError
        When there is no such folder, or it holds no model.
    """
    checkpoint = Checkpoint(model_folder(str(folder)))
    parts: tuple[Callable[[Checkpoint], Iterator[str]], ...] = (_claims, _layout, _ends, _cuts)
    for part in parts:
        try:
            findings = list(dict.fromkeys(part(checkpoint)))
        except FedloraError as error:
            findings = [f"it was refused: {error}; expected a family that fits the model"]
        except (Exception, SystemExit) as error:
            findings = [f"it raised {described(error)}; expected a family that fits the model"]
        if findings:  # what comes later often follows from it
            return findings
    return []


def _layout(checkpoint: Checkpoint) -> Iterator[str]:
    """Look whether the family's names are the model's."""
    family = find_family(checkpoint)
    check_layout(checkpoint)
    if checkpoint.blocks < 2:
        yield f"the model has {checkpoint.blocks} blocks; expected two or more, to cut between them"
    model = Blocks(checkpoint, 0, checkpoint.blocks, final=True, dtype=torch.float32).model
    names = dict(model.named_modules())
    for name in (family.embedding, family.layers):
        if name not in names:
            yield f"the model has no module {name}; expected the base model's names"


def _ends(checkpoint: Checkpoint) -> Iterator[str]:
    """Compare embedding, final stage and head with transformers, the blocks left out."""
    found = compare(checkpoint)
    for what, by in (("embedding and final stage", found.states), ("logits", found.logits)):
        if by is not None and not by <= _BOUND:
            yield f"{what} differ by {by:.2g} from transformers'; expected at most {_BOUND:g}"


def _rows(checkpoint: Checkpoint) -> torch.Tensor:
    """Draw ids of all rows, one after the other, without the padding's."""
    drawn = torch.Generator().manual_seed(4)
    vocabulary = checkpoint.size("vocab_size")
    ids = torch.randint(vocabulary, (sum(_LENGTHS),), generator=drawn)
    pad = checkpoint.config.get("pad_token_id")
    return torch.where(ids == pad, (ids + 1) % vocabulary, ids) if isinstance(pad, int) else ids


@torch.no_grad()
def _whole(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Return last hidden states as transformers computes them, a row at a time."""
    from transformers import AutoModel

    with quiet():
        model: Any = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    rows = torch.split(ids, _LENGTHS)
    return torch.cat([model(input_ids=row[None]).last_hidden_state[0] for row in rows])


@torch.no_grad()
def _split(checkpoint: Checkpoint, ids: torch.Tensor, front: int, back: int) -> torch.Tensor:
    """Return the same through the three parts of a cut, all rows at once."""
    cut = Cut.of(checkpoint, front, back)
    server = Blocks(checkpoint, cut.start, cut.stop, final=False, dtype=torch.float32)
    up = Front(checkpoint, cut, torch.float32)(ids, _LENGTHS)
    states: torch.Tensor = Back(checkpoint, cut, torch.float32, final=True)(
        server(up, _LENGTHS), _LENGTHS
    )
    return states


def _cuts(checkpoint: Checkpoint) -> Iterator[str]:
    """Compare states of the model in parts with those of the whole, row by row."""
    ids = _rows(checkpoint)
    expected = _whole(checkpoint, ids)
    for front, back in ((0, 0), (1, 0), (0, 1)):
        found = _split(checkpoint, ids, front, back)
        off = [
            float(torch.dist(own, right) / right.norm())
            for own, right in zip(
                torch.split(found, _LENGTHS), torch.split(expected, _LENGTHS), strict=True
            )
        ]
        if max(off) <= _BOUND:
            continue
        cut = f"client_front {front} and client_back {back}"
        if front == back == 0 and off[0] <= _BOUND:
            yield (
                f"rows beside each other differ by {max(off):.2g} from rows alone; expected the "
                "same, so set packs to False"
            )
        else:
            yield (
                f"states with {cut} differ by {max(off):.2g} from the whole model's; expected at "
                f"most {_BOUND:g}: look at skip_embedding_stage, final_stage and first_position"
            )
        return


def _claims(checkpoint: Checkpoint) -> Iterator[str]:
    """Look whether what comes later changes what was before, as it must not in a decoder."""
    family = find_family(checkpoint)
    ids = _rows(checkpoint)
    other = ids.clone()
    last = _LENGTHS[0] - 1
    other[last] = ids[(torch.arange(len(ids)) > last) & (ids != ids[last])][0]
    before, after = (_whole(checkpoint, own)[:last] for own in (ids, other))
    sees = not torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    if sees and family.causal:
        yield (
            "a token changes the states before it, and causal is True; expected False, as such a "
            "model cannot be trained to say the next token"
        )
    if not sees and not family.causal:
        yield (
            "no token changes the states before it, and causal is False; expected True, or a model "
            "that reads both ways"
        )
