"""A training between two episodes, in one file: taken up again, it goes on as if never stopped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from fedlora.errors import FedloraError
from fedlora.storage import replace_file
from simulations.train_policy.environment import FederationEnv
from simulations.train_policy.replay import Refiner, Replay

_REPLAY = ("latents", "plans", "rewards", "features")
_PARTS = {"curve", "ppo", "denoiser", "optimizer", "generator", "replay", "torch", "numpy"}


def save_checkpoint(
    path: Path, ppo: PPO, refiner: Refiner, replay: Replay, curve: Sequence[dict[str, Any]]
) -> None:
    """Write all that the episodes to come depend on, the random states included.

    Parameters
    ----------
    path
        The file.
    ppo
        Learner, between two episodes.
    refiner, replay
        The diffusion's training and its data.
    curve
        What was noted of each finished episode.
    """
    learner = io.BytesIO()
    ppo.save(learner)
    # PPO explores by torch's global generator, and shuffles its batches by NumPy's.
    drawn = np.random.get_state(legacy=False)
    state = {
        "curve": list(curve),
        "ppo": torch.frombuffer(bytearray(learner.getvalue()), dtype=torch.uint8),
        "denoiser": refiner.denoiser.state_dict(),
        "optimizer": refiner.optimizer.state_dict(),
        "generator": refiner.generator.get_state(),
        "replay": {name: getattr(replay, name) for name in _REPLAY},
        "torch": torch.get_rng_state(),
        "numpy": {**drawn, "state": {**drawn["state"], "key": drawn["state"]["key"].tolist()}},
    }
    file = io.BytesIO()
    torch.save(state, file)
    replace_file(path, file.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what ``save_checkpoint`` wrote, or None where there is no such file.

    Raises
    ------
    FedloraError
        When the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        known = state.keys() == _PARTS
    except Exception:  # torch says in many ways that a file is not its own
        known = False
    if not known:
        raise FedloraError(
            f"{path} is damaged or of another version; remove it, and the episodes are done again"
        )
    return state


def restore(state: dict[str, Any], env: FederationEnv, refiner: Refiner, replay: Replay) -> PPO:
    """Return PPO as it was, and put the rest of a checkpoint back.

    Parameters
    ----------
    state
        From ``read_checkpoint``.
    env
        At the episode that was next.
    refiner, replay
        Take what was theirs.
    """
    refiner.denoiser.load_state_dict(state["denoiser"])
    refiner.optimizer.load_state_dict(state["optimizer"])
    refiner.generator.set_state(state["generator"])
    for name in _REPLAY:
        setattr(replay, name, state["replay"][name])
    ppo = PPO.load(io.BytesIO(state["ppo"].numpy().tobytes()), env=env, device="cpu")
    # The next episode had begun when the state was kept; what beginning it draws comes before.
    ppo._last_obs = env.reset()
    drawn = state["numpy"]
    key = np.array(drawn["state"]["key"], dtype=np.uint32)
    np.random.set_state({**drawn, "state": {**drawn["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    return ppo
