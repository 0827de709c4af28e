"""Training of a policy: profile, warm start, then PPO and the diffusion by turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from stable_baselines3 import PPO

from fedlora.config import Scenario
from fedlora.ranks import RankSpace
from simulations.in_process import Record, connect
from simulations.progress import Bars
from simulations.studies.compare.reward import Losses
from simulations.studies.compare.trial import run_reference
from simulations.studies.kit import write_table
from simulations.train_policy.checkpoint import read_checkpoint, restore, save_checkpoint
from simulations.train_policy.curves import draw_curves
from simulations.train_policy.environment import FederationEnv
from simulations.train_policy.folder import TrainingFolder
from simulations.train_policy.learner import (
    copy_from,
    copy_to,
    new_learner,
    teach_critic,
)
from simulations.train_policy.profile import Profile, measure_profile, profile_ranks
from simulations.train_policy.replay import Refiner, Replay
from simulations.train_policy.rivals import COLUMNS, standings
from simulations.train_policy.setting import Setting
from simulations.train_policy.warm_start import (
    clone,
    demonstrations,
    joined,
    teach_plans,
)
from strategies.airllm import Policy, draft, load_policy

GAMES = 800
CLONE_STEPS = 10_000
PLAN_STEPS = 4000
CRITIC_STEPS = CLONE_STEPS // 8
REFINE_UPDATES = 4

PRACTICES = 2
"""How often the teacher corrects what the actor does by itself (DAgger: Ross, Gordon and Bagnell,
AISTATS 2011). The teacher knows the fading's mean and the losses, which the actor has to guess;
where that leads it the teacher never comes."""


class DraftPolicy(Policy):
    """A policy whose latents become plans by the formula that the denoiser is taught first."""

    def plans(
        self, latents: torch.Tensor, projections: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Return the drafts; ``start`` is not used."""
        return draft(latents, projections.expand(len(latents), -1, -1))


class PolicyTraining:
    """Trains a policy in a folder, and goes on where an interrupted training stopped.

    Parameters
    ----------
    setting
        Episodes and price.
    folder
        Takes policy and curves, and what is needed to resume.
    command
        The command line, for the policy's manifest.
    plain
        PPO alone, as a comparison: the same actor from random weights, latents become plans by a
        formula instead of the diffusion, and nothing is measured or copied beforehand.
    """

    def __init__(
        self, setting: Setting, folder: TrainingFolder, *, command: str, plain: bool = False
    ) -> None:
        self.setting, self.folder, self.command, self.plain = setting, folder, command, plain
        server = connect(setting.episode(0), Record(), workers=1)
        self.space: RankSpace = server.training.ranking.space
        self.policy = (DraftPolicy if plain else Policy)(
            trained_on={
                "command": command,
                "scenario": setting.scenario.name,
                "seeds": " ".join(map(str, setting.seeds)),
                "channels": " ".join(setting.channels),
                "snrs_db": " ".join(f"{snr:g}" for snr in setting.snrs_db),
                "price": f"{setting.price:g}",
            },
            projections=[f"layer {p.layer} {p.name}" for p in self.space.projections],
        )
        self.replay = Replay.empty()
        self._kept = read_checkpoint(folder.checkpoint)
        self.curve: list[dict[str, Any]] = self._kept["curve"] if self._kept else []
        self._references: dict[str, Losses] = {}

    def run(self, steps: int) -> None:
        """Train until so many environment steps (decisions for a client) have been taken."""
        columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        with Bars(*columns, *times, TextColumn("{task.fields[note]}")) as progress:
            self._measure_references(progress)
            profile = None if self.plain else self._profile(progress)
            if profile is not None:
                self._teach(progress, profile)
            if steps:
                self._improve(progress, profile, steps)
        self.policy.save(self.folder.policy)
        if profile is not None:
            standing = standings(self.setting, profile, self.space, self.policy)
            write_table(self.folder.rivals, COLUMNS, standing)

    def _teach(self, progress: Bars, profile: Profile) -> None:
        """Start from what the teacher makes of the losses by rank."""
        if self.folder.warm_start.exists():
            self._take(load_policy(self.folder.warm_start))
        else:
            self._warm_start(progress, profile)
            self.policy.save(self.folder.warm_start)

    def _profile(self, progress: Bars) -> Profile:
        scenario = self.setting.episode(0)
        task = progress.add_task(
            "losses by rank", total=len(profile_ranks(scenario.lora.r_max)), note=""
        )
        return measure_profile(
            replace(scenario, seed=self.setting.seeds[0]),
            self.folder.read_profile(),
            self.folder.write_profile,
            lambda: progress.advance(task),
        )

    def _measure_references(self, progress: Bars) -> None:
        self._references = self.folder.read_references()
        task = progress.add_task("references", total=len(self.setting.seeds), note="")
        for seed in self.setting.seeds:
            if str(seed) not in self._references:
                self._references[str(seed)] = run_reference(self.setting.episode(0), seed)
                self.folder.write_references(self._references)
            progress.advance(task)

    def _warm_start(self, progress: Bars, profile: Profile) -> None:
        seed = self.setting.seed
        torch.manual_seed(seed)
        self._take(Policy())
        total = CLONE_STEPS * (1 + PRACTICES)
        task = progress.add_task("copy the teacher", total=total, note="")
        self._copy(profile, lambda: progress.advance(task))
        planning = progress.add_task("teach the diffusion", total=PLAN_STEPS, note="")
        teach_plans(self.policy.denoiser, PLAN_STEPS, seed, lambda: progress.advance(planning))

    def _copy(self, profile: Profile, advance: Callable[[], None]) -> None:
        """Copy the teacher, then practise under its eyes."""
        seed, actor, shown = self.setting.seed, self.policy.actor, []
        for practice in range(1 + PRACTICES):
            shown.append(
                demonstrations(
                    self.setting,
                    profile,
                    self.space,
                    GAMES,
                    [seed, 2, practice],
                    student=actor if practice else None,
                )
            )
            clone(actor, joined(shown), CLONE_STEPS, seed + practice, advance)

    def _take(self, policy: Policy) -> None:
        """Use another policy's weights, with gradients."""
        for mine, other in (
            (self.policy.actor, policy.actor),
            (self.policy.denoiser, policy.denoiser),
        ):
            mine.load_state_dict(other.state_dict())
            mine.requires_grad_(requires_grad=True)

    def _improve(self, progress: Bars, profile: Profile | None, steps: int) -> None:
        """Alternate PPO on an episode with updates of the diffusion."""
        clients = self.setting.scenario.federation.clients
        per_episode = clients * self.setting.scenario.train.rounds
        env = FederationEnv(
            clients,
            self.setting.episode,
            lambda seed: self._references[str(seed)],
            self.policy,
            self.replay,
            self.setting.price,
            self.setting.weights_of,
            first_episode=len(self.curve),
        )
        refiner = Refiner(self.policy.denoiser, self.setting.seed)
        ppo = self._learner(env, refiner, profile, progress)
        total = -(-steps // per_episode)
        task = progress.add_task("episodes", total=total, completed=len(self.curve), note="")
        try:
            while len(self.curve) < total:
                ppo.learn(per_episode, reset_num_timesteps=False)
                losses = [] if self.plain else refiner.refine(self.replay, REFINE_UPDATES)
                scenario, reward = env.returns[-1]
                self._note(scenario, reward, losses)
                copy_to(ppo, self.policy.actor)
                self._checkpoint(ppo, refiner)
                progress.update(task, advance=1, note=f"reward {reward:.3f}")
        finally:
            env.close()

    def _learner(
        self,
        env: FederationEnv,
        refiner: Refiner,
        profile: Profile | None,
        progress: Bars,
    ) -> PPO:
        seed, actor = self.setting.seed, self.policy.actor
        if self._kept:
            ppo = restore(self._kept, env, refiner, self.replay)
            copy_to(ppo, actor)
            return ppo
        ppo = new_learner(env, self.setting.scenario.train.rounds, seed, plain=self.plain)
        if profile is None:
            copy_to(ppo, actor)
            return ppo
        demonstrated = demonstrations(self.setting, profile, self.space, GAMES, [seed, 2])
        copy_from(ppo, actor)
        task = progress.add_task("teach the critic", total=CRITIC_STEPS, note="")
        teach_critic(ppo, demonstrated, CRITIC_STEPS, seed, lambda: progress.advance(task))
        return ppo

    def _note(self, scenario: Scenario, reward: float, losses: list[float]) -> None:
        entry = {
            "episode": len(self.curve),
            "channel": scenario.channel.model,
            "snr_db": scenario.channel.snr_db[0],
            "seed": scenario.seed,
            **vars(self.setting.weights_of(len(self.curve))),
            "reward": reward,
            "diffusion_loss": sum(losses) / len(losses) if losses else None,
        }
        self.curve.append(entry)

    def _checkpoint(self, ppo: PPO, refiner: Refiner) -> None:
        save_checkpoint(self.folder.checkpoint, ppo, refiner, self.replay, self.curve)
        self.policy.save(self.folder.policy)
        self.folder.write_curve(self.curve)
        draw_curves(self.folder.plot, self.curve)
