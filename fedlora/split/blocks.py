"""A run of transformer blocks as Hugging Face's own code, with only its tensors loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedlora.blame import blaming
from fedlora.errors import FedloraError
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.family import Family, Loader, find_family, title_of
from fedlora.split.packed import (
    ROW_LENGTHS,
    RowCache,
    continuing,
    packed_attention,
    positions,
)
from fedlora.split.stretch import stretch

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Cut:
    """Which blocks of a model are where: the server holds blocks ``start`` to ``stop - 1``.

    Attributes
    ----------
    blocks
        Number of blocks of the whole model.
    start, stop
        First block on the server, and first block after it.
    """

    blocks: int
    start: int
    stop: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, client_front: int, client_back: int) -> Cut:
        """Cut a checkpoint; raises ``FedloraError`` when no block is left for the server."""
        blocks = checkpoint.blocks
        if client_front + client_back >= blocks:
            raise FedloraError(
                f"model.client_front {client_front} and model.client_back {client_back} leave none "
                f"of the model's {blocks} blocks to the server; lower them"
            )
        return cls(blocks, client_front, blocks - client_back)


class Blocks(nn.Module):
    """Blocks ``start`` to ``stop - 1`` of a checkpoint, frozen.

    Parameters
    ----------
    checkpoint
        Where the tensors are.
    start, stop
        Range of blocks. When it begins at 0 the embedding stage after the token embedding
        (positions, norms) is included.
    final
        Whether the modules after the last block are included.
    dtype
        Precision of the weights and the computation.
    load
        False leaves every parameter without storage, for whoever calls ``assign``.

    Attributes
    ----------
    fan_in_fan_out
        Whether the checkpoint has linear layers that are stored by input (GPT-2's ``Conv1D``), in
        whatever form they are kept here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        start: int,
        stop: int,
        *,
        final: bool,
        dtype: torch.dtype,
        load: bool = True,
    ) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.family: Family = find_family(checkpoint)
        self._title = title_of(type(self.family), checkpoint)
        self.config = checkpoint.config
        self.start = start
        cut = Cut(checkpoint.blocks, start, stop)
        self._entering_width = cut_widths(checkpoint, cut, final=final)[0]
        options: dict[str, Any] = {"dtype": dtype}
        if not self.family.causal:
            options["add_pooling_layer"] = False
        if self.family.packs:
            options["attn_implementation"] = packed_attention()
        self.model = empty_model(checkpoint, **options)
        self._keep(start, stop, final)
        self.fan_in_fan_out = any(isinstance(m, Conv1D) for m in self.layers.modules())
        self._loader = Loader(checkpoint, self.family, dtype)
        if load:
            for name, _ in list(self.model.named_parameters()):
                self.assign(name, self.read(name))
        self.eval()

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks that are here."""
        layers = self.model.get_submodule(self.family.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def width(self) -> int:
        """Width of the hidden states that come out."""
        return int(self.model.config.hidden_size)

    def original_name(self, name: str) -> str:
        """Return what the undivided base model calls a module or parameter of this part."""
        prefix = self.family.layers + "."
        if not name.startswith(prefix):
            return name
        index, dot, rest = name[len(prefix) :].partition(".")
        return f"{prefix}{int(index) + self.start}{dot}{rest}"

    def block_of(self, name: str) -> int | None:
        """Return the number, in the whole model, of the block that a parameter is in."""
        index = name.removeprefix(self.family.layers + ".").partition(".")[0]
        return int(index) + self.start if index.isdecimal() else None

    def read(self, name: str) -> torch.Tensor:
        """Return a parameter's tensor from the checkpoint."""
        return self._loader(self.original_name(name))

    def assign(self, name: str, tensor: torch.Tensor) -> None:
        """Set a frozen parameter; raises ``FedloraError`` when its shape is another."""
        _assign(self.model, name, tensor)

    def forward(
        self,
        packed: torch.Tensor,
        lengths: Sequence[int],
        first: int = 0,
        last: int | None = None,
    ) -> torch.Tensor:
        """Run the blocks, or some of them.

        Parameters
        ----------
        packed
            Token embeddings or hidden states of all rows one after the other, (tokens, width).
        lengths
            Tokens of each row.
        first, last
            The first block that is run, and the first after it that is not, counted from 0 among
            those here; None: to the end. The modules after the last block go with it.

        Returns
        -------
        torch.Tensor
            Hidden states, shape (tokens, width).
        """
        if self.family.packs:
            spread, places = packed[None], None
            at = positions(lengths, self.family.first_position(self.config), packed.device)
            told: dict[str, Any] = {"position_ids": at[None], ROW_LENGTHS: list(lengths)}
        else:
            spread, mask, places = pad_rows(packed, lengths)
            told = {"attention_mask": mask}
        states = self.run(spread, told, first, len(self.layers) if last is None else last)
        return states[0] if places is None else states.reshape(-1, states.shape[-1])[places]

    def run(
        self, states: torch.Tensor, told: Mapping[str, Any], first: int, last: int
    ) -> torch.Tensor:
        """Let Hugging Face's model run a stretch of its blocks on (rows, tokens, width).

        ``told`` are the model's other arguments: positions and lengths, or a mask.
        """
        if (first, last) == (0, len(self.layers)):
            whole: torch.Tensor = self.model(
                inputs_embeds=states, use_cache=False, **told
            ).last_hidden_state
            return whole
        if first == last:
            return states
        entering = states
        if first > 0:  # the stages before the first block get zeros of their width
            entering = states.new_zeros(*states.shape[:-1], self._entering_width)
        parent, _, attribute = self.family.layers.rpartition(".")
        with stretch(self.model.get_submodule(parent), attribute, first, last, states) as end:
            output = self.model(inputs_embeds=entering, use_cache=False, **told)
        found = output.last_hidden_state if end is None else end.output
        assert isinstance(found, torch.Tensor)
        return found

    def extend(
        self, packed: torch.Tensor, starts: Sequence[int], counts: Sequence[int], rows: RowCache
    ) -> torch.Tensor:
        """Run the blocks on the next tokens of rows whose first ones they have seen.

        Parameters
        ----------
        packed
            New tokens of all rows one after the other, shape (tokens, width).
        starts
            Place of each row's first new token in its row, from 0.
        counts
            New tokens of each row.
        rows
            Holds keys and values of the earlier tokens, and takes those of the new ones.

        Returns
        -------
        torch.Tensor
            Hidden states of the new tokens, shape (tokens, width).

        Raises
        ------
        FedloraError
            When rows cannot be continued in this family.
        """
        if not self.family.generates:
            raise FedloraError(
                f"model_type {self.config.get('model_type')!r} cannot generate, as its modules do "
                "not take up rows where they ended; use a family that does (docs/models.md)"
            )
        first = self.family.first_position(self.config)
        places = [
            torch.arange(first + start, first + start + count, device=packed.device)
            for start, count in zip(starts, counts, strict=True)
        ]
        config: Any = self.model.config
        before = config._attn_implementation
        config._attn_implementation = packed_attention()
        try:
            with continuing(rows):
                output = self.model(
                    inputs_embeds=packed[None],
                    position_ids=torch.cat(places)[None],
                    use_cache=False,
                )
        finally:
            config._attn_implementation = before
        states: torch.Tensor = output.last_hidden_state[0]
        return states

    def places(self, lengths: Sequence[Sequence[int]]) -> list[int]:
        """Return on how many tokens the linear layers compute for each of several clients.

        Parameters
        ----------
        lengths
            Of each client's rows.
        """
        if self.family.packs:
            return [sum(rows) for rows in lengths]
        longest = max(length for rows in lengths for length in rows)
        return [longest * len(rows) for rows in lengths]

    def _keep(self, start: int, stop: int, final: bool) -> None:
        parent_name, _, attribute = self.family.layers.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        setattr(parent, attribute, nn.ModuleList(list(self.layers)[start:stop]))
        # Hugging Face's loop counts kept layers from 0, so their types must start there too.
        config: Any = self.model.config
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[start:stop]
        config.num_hidden_layers = stop - start
        if start > 0:
            with blaming(self._title, type(self.family)):
                self.family.skip_embedding_stage(self.model)
        else:
            _replace(self.model, self.family.embedding, nn.Identity())
        if start > 0 and _has(self.model, self.family.embedding):
            _replace(self.model, self.family.embedding, nn.Identity())
        if not final:
            for name in self.family.final:
                if _has(self.model, name):
                    _replace(self.model, name, nn.Identity())


def empty_model(checkpoint: Checkpoint, **options: Any) -> Any:
    """Return Hugging Face's base model of a checkpoint, whose parameters have no storage.

    Buffers have values, as they are computed from the configuration.

    Raises
    ------
    FedloraError
        When transformers cannot make it from the configuration.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    try:
        config = AutoConfig.from_pretrained(checkpoint.folder)
        # Without storage there is nothing to draw, which takes most of the time.
        with no_init_weights(), init_empty_weights(include_buffers=False):
            return AutoModel.from_config(config, **options)
    except Exception as error:  # its checks raise errors of many kinds
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        raise FedloraError(
            f"transformers refuses {checkpoint.folder / 'config.json'} ({type(error).__name__}: "
            f"{reason}); mend it, or copy it anew"
        ) from None


def cut_widths(checkpoint: Checkpoint, cut: Cut, *, final: bool) -> tuple[int, int]:
    """Return the widths of what goes up and what comes down at the cut.

    Both are the hidden size, except next to an embedding of another width (OPT-350m): the token
    embedding goes up as it is, and what has passed the final stage has the embedding's width.
    """
    hidden, embedding = checkpoint.size("hidden_size", "n_embd"), embedding_width(checkpoint)
    return (
        embedding if cut.start == 0 else hidden,
        embedding if final and cut.stop == cut.blocks else hidden,
    )


def embedding_width(checkpoint: Checkpoint) -> int:
    """Return the width of the token embedding: the hidden size, except for OPT-350m."""
    if checkpoint.config.get("word_embed_proj_dim") is not None:
        return checkpoint.size("word_embed_proj_dim")
    return checkpoint.size("hidden_size", "n_embd")


def pad_rows(
    packed: torch.Tensor, lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Spread packed tokens over rows padded on the right.

    Parameters
    ----------
    packed
        Tokens of all rows one after the other, shape (tokens, width).
    lengths
        Tokens of each row.

    Returns
    -------
    tuple
        Rows, shape (rows, longest, width); mask, shape (rows, longest), or None when no row is
        padded; positions of the packed tokens in the flattened rows, shape (tokens,).
    """
    longest = max(lengths)
    sizes = torch.tensor(lengths, device=packed.device)
    real = torch.arange(longest, device=packed.device) < sizes[:, None]
    places = real.flatten().nonzero().squeeze(1)
    rows = packed.new_zeros(len(lengths) * longest, packed.shape[1])
    rows = rows.index_copy(0, places, packed).view(len(lengths), longest, -1)
    return rows, (None if bool(real.all()) else real.long()), places


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    expected = getattr(module, attribute).shape
    if tensor.shape != expected:
        raise FedloraError(
            f"tensor {name} has shape {tuple(tensor.shape)}, config.json implies "
            f"{tuple(expected)}; weights and configuration must be of one checkpoint"
        )
    setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))


def _has(model: nn.Module, name: str) -> bool:
    module: Any = model
    for part in name.split("."):
        module = getattr(module, part, None)
        if module is None:
            return False
    return True


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent_name, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent_name), attribute, module)
