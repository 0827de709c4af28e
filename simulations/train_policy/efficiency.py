"""How many environment steps a training needs to a reward, against PPO alone.

``python -m simulations.train_policy.efficiency AIRLLM... --against PPO...`` reads the curves of
trainings by ``fedlora train-policy``, with and without ``--plain-ppo``, in the order of their
seeds. A step is one client's decision in one round. The runs that measured the teacher's table of
losses count as steps of the training that used them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from simulations.refusals import one_sentence


@dataclass(frozen=True)
class Curve:
    """A training's rewards.

    Attributes
    ----------
    rewards
        Of each episode.
    steps_of_episode
        Clients times rounds.
    head_start
        Steps that were spent before the first episode.
    """

    rewards: tuple[float, ...]
    steps_of_episode: int
    head_start: int = 0

    def windows(self, episodes: int) -> np.ndarray:
        """Return the mean reward of every so many episodes in a row; of fewer there is none."""
        if len(self.rewards) < episodes:
            return np.empty(0)
        return np.convolve(self.rewards, np.full(episodes, 1 / episodes), mode="valid")

    def steps_to(self, reward: float, episodes: int) -> int | None:
        """Return the steps to so many episodes in a row of a mean reward; None: never."""
        reached = np.flatnonzero(self.windows(episodes) >= reward)
        if not len(reached):
            return None
        return self.head_start + (int(reached[0]) + episodes) * self.steps_of_episode

    @property
    def steps(self) -> int:
        """All steps that were taken."""
        return self.head_start + len(self.rewards) * self.steps_of_episode


def read_curve(folder: Path) -> Curve:
    """Read a training's folder."""
    scenario = load_scenario(folder / "settings.toml")
    lines = (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    profile, clients = folder / "profile.json", scenario.federation.clients
    measured = json.loads(profile.read_text(encoding="utf-8")) if profile.exists() else {}
    # The run without adapter has one round; its losses are repeated.
    rounds = sum(1 if rank == "0" else len(losses) for rank, losses in measured.items())
    return Curve(
        tuple(json.loads(line)["reward"] for line in lines),
        clients * scenario.train.rounds,
        clients * rounds,
    )


def compare(ours: Sequence[Curve], plain: Sequence[Curve], episodes: int) -> list[str]:
    """Return a line for each pair: steps to the reward that ours has in its first episodes.

    Raises
    ------
    FedloraError
        When there are not as many of one as of the other, or one has too few episodes.
    """
    if len(ours) != len(plain):
        raise FedloraError(
            f"{len(ours)} trainings are held against {len(plain)}; name one of each for each seed"
        )
    for curve in (*ours, *plain):
        if not 1 <= episodes <= len(curve.rewards):
            raise FedloraError(
                f"--episodes is {episodes}, and a training has {len(curve.rewards)}; set 1 up to "
                "that, or train longer"
            )
    lines = [
        "| seed | reward | AirLLM, steps | PPO alone, steps | fewer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for seed, (mine, other) in enumerate(zip(ours, plain, strict=True)):
        # What the training has in its first episodes in a row.
        target = float(mine.windows(episodes)[0])
        needed, theirs = mine.steps_to(target, episodes), other.steps_to(target, episodes)
        assert needed is not None
        shown = (
            f"{theirs}"
            if theirs
            else f"never in {other.steps} (best {max(other.windows(episodes)):.3f})"
        )
        bound = "" if theirs else "at least "
        fewer = 100 * (1 - needed / (theirs or other.steps))
        lines.append(f"| {seed} | {target:.3f} | {needed} | {shown} | {bound}{fewer:.0f}% |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ours", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, required=True)
    parser.add_argument(
        "--episodes",
        type=int,
        default=10,
        help="episodes in a row that count; in ten, each SNR and channel comes once",
    )
    given = parser.parse_args()
    ours, plain = ([read_curve(folder) for folder in own] for own in (given.ours, given.against))
    print("\n".join(compare(ours, plain, given.episodes)))


if __name__ == "__main__":
    with one_sentence():
        main()
