"""A trained policy and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedlora.ranks import FedloraError
from fedlora.storage import replace_file
from strategies.airllm.features import PROJECTION_FEATURES, STATE_FEATURES, WEIGHT_FEATURES
from strategies.airllm.network import CHANNELS, LATENT, Actor, Denoiser
from strategies.airllm.sampler import sample

VERSION = 2
SHIPPED = Path(__file__).with_name("policy.safetensors")


@dataclass
class Policy:
    """An actor and a denoiser.

    Attributes
    ----------
    actor, denoiser
        The networks.
    steps
        DDIM sampling steps.
    guidance
        Weight of the condition in classifier-free guidance.
    trained_on
        Free text by key: command, scenario, seeds.
    projections
        Names of the projections that the policy was trained on.
    state_features
        Which features of a client the actor sees.
    """

    actor: Actor = field(default_factory=Actor)
    denoiser: Denoiser = field(default_factory=Denoiser)
    steps: int = 4
    guidance: float = 1.5
    trained_on: Mapping[str, str] = field(default_factory=dict)
    projections: Sequence[str] = ()
    state_features: Sequence[str] = STATE_FEATURES

    @property
    def takes_weights(self) -> bool:
        """Whether the policy can be told what bits and the end of a run are worth."""
        return set(WEIGHT_FEATURES) <= set(self.state_features)

    @torch.no_grad()
    def latents(self, states: torch.Tensor) -> torch.Tensor:
        """Return the coarse latents, in [-1, 1], of states, shape (clients, features)."""
        seen = [STATE_FEATURES.index(name) for name in self.state_features]
        return torch.tanh(self.actor(states[:, seen]))

    @torch.no_grad()
    def plans(
        self, latents: torch.Tensor, projections: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Return plans, shape (clients, projections, 3), refined from standard normal ``start``."""

        def predict(x: torch.Tensor, timestep: int, conditioned: bool) -> torch.Tensor:
            count = len(latents)
            known = torch.full((count,), float(conditioned))
            times = torch.full((count,), timestep)
            noise: torch.Tensor = self.denoiser(x, times, projections, latents, known)
            return noise

        return sample(start, predict, self.steps, self.guidance)

    def save(self, path: Path) -> None:
        """Write the policy as safetensors, with a manifest in its header."""
        manifest = {
            "version": VERSION,
            "state_features": list(self.state_features),
            "projection_features": PROJECTION_FEATURES,
            "latent": LATENT,
            "channels": CHANNELS,
            "steps": self.steps,
            "guidance": self.guidance,
            "projections": list(self.projections),
            "trained_on": dict(self.trained_on),
        }
        tensors = {
            f"{name}.{key}": value.contiguous()
            for name, module in (("actor", self.actor), ("denoiser", self.denoiser))
            for key, value in module.state_dict().items()
        }
        replace_file(path, save(tensors, {"fedlora.airllm": json.dumps(manifest)}))


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises
    ------
    FedloraError
        When the file is missing or no policy, is of another version, or was trained on other
        features.
    """
    mend = "train one with `fedlora train-policy`, or leave ranks.options.policy out"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FedloraError(f"cannot read policy {path} ({error}); {mend}") from None
    manifest = _manifest(metadata, path, mend)
    policy = Policy(
        Actor(len(manifest["state_features"])),
        steps=manifest["steps"],
        guidance=manifest["guidance"],
        trained_on=manifest["trained_on"],
        projections=manifest["projections"],
        state_features=tuple(manifest["state_features"]),
    )
    for name, module in (("actor", policy.actor), ("denoiser", policy.denoiser)):
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        try:
            module.load_state_dict(own)
        except RuntimeError:
            raise FedloraError(
                f"policy {path} has other {name} weights than this version; {mend}"
            ) from None
        module.eval().requires_grad_(requires_grad=False)
    return policy


def _manifest(metadata: Mapping[str, str], path: Path, mend: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(metadata["fedlora.airllm"])
        version = manifest["version"]
    except (KeyError, ValueError, TypeError):
        raise FedloraError(f"{path} is no airllm policy; {mend}") from None
    if version != VERSION:
        raise FedloraError(f"policy {path} is of version {version}, not {VERSION}; {mend}")
    states = tuple(manifest.get("state_features", ()))
    projections = tuple(manifest.get("projection_features", ()))
    # Features that came later are simply not shown to a policy that was trained before them.
    for key, found, here in (
        ("state_features", states, tuple(name for name in STATE_FEATURES if name in states)),
        ("projection_features", projections, PROJECTION_FEATURES),
    ):
        if found != here or not found:
            known = STATE_FEATURES if key == "state_features" else here
            raise FedloraError(
                f"policy {path} was trained on the {key} {list(found)}, not {list(known)}; {mend}"
            )
    return manifest
