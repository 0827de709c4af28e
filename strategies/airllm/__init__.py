"""AirLLM's rank strategy: a policy's coarse latent, refined to ranks by diffusion."""

from strategies.airllm.features import (
    MOST_BIT_PRICE,
    MOST_END_WEIGHT,
    NO_WEIGHTS,
    STATE_FEATURES,
    ChannelMemory,
    Held,
    Weights,
    budget_rank,
    client_state,
    coverage,
    has_arrived,
    projection_features,
)
from strategies.airllm.network import LATENT, Actor, Denoiser
from strategies.airllm.plan import draft, drafted_parts, trained_ranks
from strategies.airllm.policy import Policy, load_policy
from strategies.airllm.sampler import TRAIN_TIMESTEPS, add_noise, sample

__all__ = [
    "LATENT",
    "MOST_BIT_PRICE",
    "MOST_END_WEIGHT",
    "NO_WEIGHTS",
    "STATE_FEATURES",
    "TRAIN_TIMESTEPS",
    "Actor",
    "ChannelMemory",
    "Denoiser",
    "Held",
    "Policy",
    "Weights",
    "add_noise",
    "budget_rank",
    "client_state",
    "coverage",
    "draft",
    "drafted_parts",
    "has_arrived",
    "load_policy",
    "projection_features",
    "sample",
    "trained_ranks",
]
