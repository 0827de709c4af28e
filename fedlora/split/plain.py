"""A Llama in plain torch, for who asks it one text: transformers takes twice as long to import.

It is the order of work of Hugging Face's ``LlamaModel`` with SDPA and of PEFT's layers, so that the
bits are the same, and is used for checkpoints alone whose first block was compared with theirs
(``conformity.plain_llama``). Training and generation run Hugging Face's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F

from fedlora.split.checkpoint import Checkpoint
from fedlora.split.edge import TokenEmbedding
from fedlora.split.families.llama import Llama
from fedlora.split.family import Loader, find_family
from fedlora.split.norms import RMSNorm

LowRank = tuple[torch.Tensor, torch.Tensor, float]
"""A (r, d_in), B (d_out, r), and the scale of their product."""

_KNOWN: Final = frozenset(
    (
        *("architectures", "dtype", "model_type", "pretraining_tp", "torch_dtype"),
        *("attention_bias", "attention_dropout", "hidden_act", "initializer_range", "mlp_bias"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache"),
        *("head_dim", "hidden_size", "intermediate_size", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
        *("rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings", "vocab_size"),
    )
)
"""Keys of a configuration of which is known what they change; with any other it is not tried."""
_WIDEST_HEAD = 256  # beyond, transformers hands keys and values to SDPA in another form


@dataclass(frozen=True)
class PlainLlama:
    """The base model of a checkpoint, in fp32.

    Attributes
    ----------
    checkpoint
        Where the tensors are, which are mapped as they are used.
    blocks
        How many of its blocks are run.
    low_rank
        What an adapter adds, by the base model's name of the projection.
    """

    checkpoint: Checkpoint
    blocks: int
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, low_rank: Mapping[str, LowRank] | None = None
    ) -> PlainLlama | None:
        """Return the model, or None where Hugging Face's would compute anything else."""
        config = checkpoint.config
        fits = (
            checkpoint.model_type == "llama"
            and checkpoint.manifest is None
            and type(find_family(checkpoint)) is Llama
            and not config.keys() - _KNOWN
            and all(entry.dtype == "F32" for entry in checkpoint.entries.values())
            and config.get("dtype", config.get("torch_dtype")) in (None, "float32")
            and config.get("hidden_act", "silu") == "silu"
            and not (config.get("attention_bias") or config.get("mlp_bias"))
            and _theta(config) is not None
        )
        if not fits:
            return None
        model = cls(checkpoint, checkpoint.blocks, low_rank or {})
        heads, groups = model._heads
        usual = heads % groups == 0 and model._width % 2 == 0 and model._width <= _WIDEST_HEAD
        return model if usual and model._is_whole() else None

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Map a text's tokens (tokens,) to their states after the final norm, (tokens, width)."""
        states = TokenEmbedding(self.checkpoint, torch.float32)(ids)[None]
        turns = self._turns(len(ids))
        for number in range(self.blocks):
            name = f"layers.{number}."
            normed = self._norm(f"{name}input_layernorm", states)
            states = states + self._attend(f"{name}self_attn.", normed, *turns)
            normed = self._norm(f"{name}post_attention_layernorm", states)
            gate = F.silu(self._project(f"{name}mlp.gate_proj", normed))
            inner = gate * self._project(f"{name}mlp.up_proj", normed)
            states = states + self._project(f"{name}mlp.down_proj", inner)
        return self._norm("norm", states)[0]

    @property
    def _heads(self) -> tuple[int, int]:
        """Heads of queries, and of keys and values."""
        heads = self.checkpoint.size("num_attention_heads")
        known = self.checkpoint.config.get("num_key_value_heads") is not None
        return heads, self.checkpoint.size("num_key_value_heads") if known else heads

    @property
    def _width(self) -> int:
        """Width of a head."""
        if self.checkpoint.config.get("head_dim") is not None:
            return self.checkpoint.size("head_dim")
        return self.checkpoint.size("hidden_size") // self._heads[0]

    def _is_whole(self) -> bool:
        """Tell whether all tensors are there, each of its shape, and what an adapter adds fits."""
        size, (heads, groups) = self.checkpoint.size, self._heads
        width, inner, at = size("hidden_size"), size("intermediate_size"), self._width
        parts = {f"self_attn.{part}_proj": (groups * at, width) for part in "kv"}
        parts |= {"self_attn.q_proj": (heads * at, width), "self_attn.o_proj": (width, heads * at)}
        parts |= {f"mlp.{part}_proj": (inner, width) for part in ("gate", "up")}
        parts["mlp.down_proj"] = (width, inner)
        linear = {f"layers.{n}.{name}": parts[name] for n in range(self.blocks) for name in parts}
        norms = ("input_layernorm", "post_attention_layernorm")
        names = ["norm", *(f"layers.{n}.{norm}" for n in range(self.blocks) for norm in norms)]
        added = {name: (len(B), A.shape[1]) for name, (A, B, _) in self.low_rank.items()}
        return (
            all(
                self._shape(name) == shape
                for name, shape in {**linear, **dict.fromkeys(names, (width,))}.items()
            )
            and all(linear.get(name) == shape for name, shape in added.items())
            and all(len(A) == B.shape[1] for A, B, _ in self.low_rank.values())
        )

    def _shape(self, name: str) -> tuple[int, ...] | None:
        found = self._loader.name(f"{name}.weight")
        return None if found is None else self.checkpoint.entries[found].shape

    @property
    def _loader(self) -> Loader:
        return Loader(self.checkpoint, find_family(self.checkpoint), torch.float32)

    def _load(self, name: str) -> torch.Tensor:
        return self.checkpoint.share(self._loader.name(name) or name, torch.float32)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        eps = float(self.checkpoint.config.get("rms_norm_eps", 1e-6))
        normed: torch.Tensor = RMSNorm(self._load(f"{name}.weight"), eps)(x)
        return normed

    def _project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self._load(f"{name}.weight"))
        if (own := self.low_rank.get(name)) is None:
            return y
        A, B, scale = own
        return y + F.linear(F.linear(x, A), B) * scale

    def _turns(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of each position's angles, (1, 1, tokens, width of a head)."""
        theta, width = _theta(self.checkpoint.config), self._width
        assert theta is not None
        rates = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float) / width))
        angles = torch.arange(tokens)[None, :, None].float() * rates
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    def _attend(
        self, name: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        shape = (*x.shape[:2], -1, self._width)
        q, k, v = (
            self._project(f"{name}{part}_proj", x).view(shape).transpose(1, 2) for part in "qkv"
        )
        heads, groups = self._heads
        y = F.scaled_dot_product_attention(
            _turned(q, cos, sin),
            _turned(k, cos, sin),
            v,
            scale=self._width**-0.5,
            is_causal=x.shape[1] > 1,
            enable_gqa=heads > groups,
        )
        return self._project(f"{name}o_proj", y.transpose(1, 2).reshape(*x.shape[:2], -1))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _theta(config: Mapping[str, Any]) -> float | None:
    """Return the base of the rotary angles; None where they are not the plain ones."""
    told = config.get("rope_parameters")
    if config.get("rope_scaling") or not isinstance(told, dict | None):
        return None
    if told is None:
        told = {"rope_theta": config.get("rope_theta", 10000.0)}
    if told.keys() - {"rope_theta", "rope_type"} or told.get("rope_type", "default") != "default":
        return None
    theta = told.get("rope_theta")
    return float(theta) if isinstance(theta, int | float) and theta > 0 else None
