"""AirLLM as it was published, for parity: state, actions, cost and reward of the released code.

Yang et al., arXiv 2507.11515; constants from the authors' code. What weakens it is kept (one state
of every rank, features that hardly vary, ``floor`` in the decoding); ``airllm`` is the one to use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fedlora.checks import BANDWIDTH_MAX_HZ, BANDWIDTH_MIN_HZ
from fedlora.config import SNR_LIMIT_DB
from fedlora.ranks import (
    ClientReport,
    FedloraError,
    RankDecision,
    RankSpace,
    RankStrategy,
    RankVector,
)
from strategies.airllm import sample
from strategies.options import check_numbers, check_policy, check_seed

Array = NDArray[np.float64]

LATENT = 16
DDIM_STEPS = 50
GUIDANCE = 1.5
R_MIN = 1
REWARD_PRICE = 0.1
INFEASIBLE_PENALTY = 10.0
BITS_PER_PARAMETER = 32

_KEY = "fedlora.airllm-paper"
_TIME = 64
_HIDDEN = 512


def cost(space: RankSpace, ranks: Sequence[int], rate_bps: float, latency_s: float) -> float:
    """Return ``32 N(r) / max(C T, 1)``; above 1 the adapter comes too late.

    Parameters
    ----------
    space
        The projections.
    ranks
        One rank for each.
    rate_bps
        Capacity C, in bit/s.
    latency_s
        Latency budget T, in seconds.
    """
    bits = BITS_PER_PARAMETER * space.airllm_parameters(ranks)
    return bits / max(rate_bps * latency_s, 1.0)


def reward(cross_entropy: float, communication_cost: float) -> float:
    """Return the published reward: training loss and cost, or a penalty if the cost exceeds 1."""
    if communication_cost <= 1:
        return -cross_entropy - REWARD_PRICE * communication_cost
    return -(INFEASIBLE_PENALTY + REWARD_PRICE) * communication_cost


def normalised(value: float, values: Sequence[float]) -> float:
    """Return a channel's SNR or bandwidth within the list it is drawn from; 0.5 for one value."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def token_entropy(tokens: Sequence[int]) -> float:
    """Return the normalised entropy of the non-special tokens of a batch, from 0 to 1."""
    _, counts = np.unique(np.asarray(tokens), return_counts=True)
    shares = counts / counts.sum()
    entropy = float(-(shares * np.log2(shares)).sum())
    return float(np.clip(entropy / max(np.log2(max(len(counts), 2)), 1.0), 0, 1))


def unknown_share(tokens: Sequence[int], unknown: int) -> float:
    """Return the part of the tokens that the vocabulary does not know."""
    return float(np.mean(np.asarray(tokens) == unknown))


def state(
    snr: float, bandwidth: float, entropy: float, unknown: float, ranks: Sequence[int], r_max: int
) -> Array:
    """Return the published state, ``[snr, bandwidth, H, oov, r_1 / r_max, ...]``."""
    return np.concatenate([[snr, bandwidth, entropy, unknown], np.asarray(ranks) / r_max])


def decode(x: ArrayLike, r_max: int, r_min: int = R_MIN) -> NDArray[np.int64]:
    """Return ranks of actions in [-1, 1]; r_max is reached at 1 only."""
    ranks = np.floor((np.asarray(x) + 1) / 2 * (r_max - r_min)) + r_min
    clipped: npt.NDArray[np.int64] = np.clip(ranks, r_min, r_max).astype(np.int64)
    return clipped


def encode(ranks: ArrayLike, r_max: int, r_min: int = R_MIN) -> Array:
    """Return the actions of ranks."""
    if r_max == r_min:
        return np.ones(np.shape(ranks))
    return 2 * (np.asarray(ranks, dtype=float) - r_min) / (r_max - r_min) - 1


class PaperActor(nn.Module):
    """Mean of the latent and value, over a shared encoder."""

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(state_size, 256),
            nn.LayerNorm(256),
            nn.Mish(),
            nn.Linear(256, 256),
            nn.Mish(),
        )
        self.mean = nn.Linear(256, LATENT)
        self.value = nn.Linear(256, 1)
        self.log_std = nn.Parameter(torch.full((LATENT,), -0.5))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the latents before their tanh."""
        means: torch.Tensor = self.mean(self.encoder(states))
        return means


class PaperDenoiser(nn.Module):
    """Noise in the actions of all projections, given the time and the latent."""

    def __init__(self, projections: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(_TIME, _HIDDEN), nn.Mish())
        self.enter = nn.Linear(projections + LATENT, _HIDDEN)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(_HIDDEN), nn.Mish(), nn.Linear(_HIDDEN, _HIDDEN))
            for _ in range(2)
        )
        self.leave = nn.Sequential(
            nn.LayerNorm(_HIDDEN), nn.Mish(), nn.Linear(_HIDDEN, projections)
        )

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, latent: torch.Tensor
    ) -> torch.Tensor:
        """Return the noise, shape (clients, projections)."""
        half = _TIME // 2
        rates = torch.exp(-np.log(10_000.0) * torch.arange(half) / half)
        angles = timestep[:, None].float() * rates
        embedded = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        hidden = self.enter(torch.cat([x, latent], dim=-1)) + embedded
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: torch.Tensor = self.leave(hidden)
        return out


class AirLlmPaper(RankStrategy):
    """The published networks and sampler: PPO latent of 16, 50 DDIM steps, guidance 1.5.

    The published state holds the ranks of the round before; entropy and unknown tokens are not
    reported here and are 0. A decision does not look at the budget, so that a delivery can be late.

    Parameters
    ----------
    seed
        Of the start noise and, without a policy file, of the networks, which are then untrained.
    policy
        Weights that ``save_weights`` wrote for the same projections and r_max.
    snrs_db, bandwidths_hz
        The lists that SNR and bandwidth are normalised by.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        policy: str = "",
        snrs_db: Sequence[float] = (-5.0, 0.0, 5.0, 10.0, 15.0),
        bandwidths_hz: Sequence[float] = (100e6,),
    ) -> None:
        self.seed, self.policy = check_seed(seed), check_policy(policy)
        self.snrs_db = check_numbers("snrs_db", snrs_db, -SNR_LIMIT_DB, SNR_LIMIT_DB)
        self.bandwidths_hz = check_numbers(
            "bandwidths_hz", bandwidths_hz, BANDWIDTH_MIN_HZ, BANDWIDTH_MAX_HZ
        )
        self.actor: PaperActor | None = None
        self.denoiser: PaperDenoiser | None = None
        self.ranks: dict[str, list[int]] = {}
        self.pending: dict[str, list[int]] = {}

    def prepare(self, space: RankSpace) -> None:
        """Build the networks for the space's number of projections, and load their weights."""
        generator_state = torch.get_rng_state()
        torch.manual_seed(self.seed)
        self.actor = PaperActor(4 + len(space)).eval().requires_grad_(requires_grad=False)
        self.denoiser = PaperDenoiser(len(space)).eval().requires_grad_(requires_grad=False)
        torch.set_rng_state(generator_state)
        if self.policy:
            load_weights(self.policy, self.actor, self.denoiser, space)

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        """Decide for all clients at once."""
        if self.actor is None or self.denoiser is None:
            self.prepare(space)
        if not clients:
            return {}
        assert self.actor is not None and self.denoiser is not None
        states = np.array([self._state(name, report, space) for name, report in clients.items()])
        start = np.array(
            [
                np.random.default_rng([self.seed, round, crc32(name.encode())]).standard_normal(
                    len(space)
                )
                for name in clients
            ]
        )
        latents = torch.tanh(self.actor(torch.from_numpy(states).float()))
        denoiser = self.denoiser

        def predict(x: torch.Tensor, timestep: int, conditioned: bool) -> torch.Tensor:
            times = torch.full((len(x),), timestep)
            noise: torch.Tensor = denoiser(x, times, latents * float(conditioned))
            return noise

        plans = sample(torch.from_numpy(start).float(), predict, DDIM_STEPS, GUIDANCE)
        ranks = decode(plans.numpy(), space.r_max, max(space.r_min, R_MIN)).tolist()
        self.pending = dict(zip(clients, ranks, strict=True))
        return {name: RankDecision(RankVector(own)) for name, own in self.pending.items()}

    def observe(self, round: int, outcomes: Mapping[str, Any]) -> None:
        """Keep the round's ranks for the next state."""
        del round
        self.ranks |= {name: own for name, own in self.pending.items() if name in outcomes}
        self.pending = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the ranks of the rounds before."""
        return {"ranks": dict(self.ranks), "pending": dict(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.ranks, self.pending = dict(state["ranks"]), dict(state["pending"])

    def _state(self, client: str, report: ClientReport, space: RankSpace) -> Array:
        channel = report.channel
        snr = channel.down_snr_db if channel and channel.down_snr_db is not None else None
        before = self.ranks.get(client, [max(space.r_max // 2, R_MIN)] * len(space))
        return state(
            0.5 if snr is None else float(np.clip(normalised(snr, self.snrs_db), 0, 1)),
            normalised(channel.bandwidth_hz, self.bandwidths_hz)
            if channel and len(self.bandwidths_hz) > 1
            else 0.5,
            0.0,
            0.0,
            before,
            space.r_max,
        )


def save_weights(path: Path, actor: PaperActor, denoiser: PaperDenoiser, space: RankSpace) -> None:
    """Write the networks as safetensors; the header says how many projections, and r_max."""
    tensors = {f"actor.{key}": value for key, value in actor.state_dict().items()}
    tensors |= {f"denoiser.{key}": value for key, value in denoiser.state_dict().items()}
    header = {_KEY: json.dumps(_header(space))}  # several keys would come in any order
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)


def load_weights(path: Path, actor: PaperActor, denoiser: PaperDenoiser, space: RankSpace) -> None:
    """Read what ``save_weights`` wrote for the same space.

    Raises
    ------
    FedloraError
        When it is no such file, or was trained for other projections or another r_max.
    """
    mend = "leave ranks.options.policy out, or use strategy airllm, which fits any model"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        # before release 0.2 the header's values were the file's own metadata
        header = json.loads(metadata[_KEY]) if _KEY in metadata else metadata
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise FedloraError(f"cannot read policy {path} ({error}); {mend}") from None
    if not isinstance(header, dict) or {k: str(v) for k, v in header.items()} != _header(space):
        header = header if isinstance(header, dict) else {}
        raise FedloraError(
            f"policy {path} is for {header.get('projections', 'other')} projections and r_max "
            f"{header.get('r_max', 'unknown')}, this model has {len(space)} and {space.r_max}; "
            f"{mend}"
        )
    for name, module in (("actor", actor), ("denoiser", denoiser)):
        module.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        )


def _header(space: RankSpace) -> dict[str, str]:
    return {"projections": str(len(space)), "r_max": str(space.r_max)}
