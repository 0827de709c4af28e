"""Training of a policy: profile, warm start, then PPO and the diffusion by turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from stable_baselines3 import PPO
from torch import nn

from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.ranks import RankSpace
from fedlora.report.run_folder import replace_file
from simulations.compare.reward import Losses
from simulations.compare.trial import run_reference
from simulations.in_process import Record, connect
from simulations.train_policy.curves import draw_curves
from simulations.train_policy.environment import FederationEnv
from simulations.train_policy.profile import Profile, measure_profile, profile_ranks
from simulations.train_policy.replay import Refiner, Replay
from simulations.train_policy.setting import Setting
from simulations.train_policy.teacher import Demonstrations, ShadowPrices
from simulations.train_policy.thrift import PriceList
from simulations.train_policy.warm_start import (
    clone,
    demonstrations,
    fading_of,
    fit,
    teach_plans,
)
from strategies.airllm.network import Actor
from strategies.airllm.plan import draft
from strategies.airllm.policy import Policy, load_policy

GAMES = 800
CLONE_STEPS = 10_000
PLAN_STEPS = 4000
REFINE_UPDATES = 4
LOG_STD = -1.2
"""Logarithm of the exploration around the teacher's latents, before their tanh."""

PLAIN_LOG_STD = -0.5
"""The same where there was no teacher (AirLLM, released code)."""


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
    out
        The folder: ``policy.safetensors``, ``warm-start.safetensors``, ``curves.png`` and what is
        needed to resume.
    resume
        Whether to go on with what the folder holds.
    command
        The command line, for the policy's manifest.
    plain
        PPO alone, as a comparison: the same actor from random weights, latents become plans by a
        formula instead of the diffusion, and nothing is measured or copied beforehand.

    Raises
    ------
    FedloraError
        When the folder holds a training and ``resume`` is not set, or one of other settings is.
    """

    def __init__(
        self, setting: Setting, out: Path, *, resume: bool, command: str, plain: bool = False
    ) -> None:
        self.setting, self.out, self.command, self.plain = setting, out, command, plain
        out.mkdir(parents=True, exist_ok=True)
        settings = _describe(setting, plain=plain)
        kept = out / "settings.toml"
        if kept.exists():
            if not resume:
                raise FedloraError(f"{out} holds a training; add --resume, or give another --out")
            if kept.read_text(encoding="utf-8") != settings:
                raise FedloraError(
                    f"{out} holds a training with other settings; give another --out"
                )
        kept.write_text(settings, encoding="utf-8")
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
        self.curve: list[dict[str, Any]] = _read_curve(out / "curve.jsonl")
        self.prices: PriceList | None = None
        self._references: dict[str, Losses] = {}

    def run(self, steps: int) -> None:
        """Train until so many environment steps (decisions for a client) have been taken."""
        columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}")) as progress:
            self._measure_references(progress)
            demonstrated = None if self.plain else self._teach(progress)
            self._improve(progress, demonstrated, steps)
        self.policy.save(self.out / "policy.safetensors")

    def _teach(self, progress: Progress) -> Demonstrations:
        """Measure the losses by rank, and start from what the teacher makes of them."""
        scenario = self.setting.scenario
        self.prices = PriceList(
            self._profile(progress),
            scenario.train.rounds,
            scenario.lora.r_max,
            self.setting.price,
            self.setting.saving,
            self.setting.seed,
        )
        demonstrated = demonstrations(
            self.setting, self.prices, self.space, GAMES, self.setting.seed
        )
        warm = self.out / "warm-start.safetensors"
        if warm.exists():
            self._take(load_policy(warm))
        else:
            self._warm_start(progress, demonstrated)
            self.policy.save(warm)
        return demonstrated

    def _shadow(self, scenario: Scenario) -> ShadowPrices:
        """Return what an episode's training pays beyond the reward."""
        if self.prices is None:
            return ShadowPrices()
        channel = scenario.channel
        rayleigh = channel.model == "rayleigh"
        return self.prices.of(fading_of(scenario, self.space, channel.snr_db[0], rayleigh=rayleigh))

    def _profile(self, progress: Progress) -> Profile:
        scenario = self.setting.episode(0)
        task = progress.add_task(
            "losses by rank", total=len(profile_ranks(scenario.lora.r_max)), note=""
        )
        return measure_profile(
            replace(scenario, seed=self.setting.seeds[0]),
            self.out / "profile.json",
            lambda: progress.advance(task),
        )

    def _measure_references(self, progress: Progress) -> None:
        path = self.out / "references.json"
        self._references = json.loads(path.read_text()) if path.exists() else {}
        task = progress.add_task("references", total=len(self.setting.seeds), note="")
        for seed in self.setting.seeds:
            if str(seed) not in self._references:
                self._references[str(seed)] = run_reference(self.setting.episode(0), seed)
                path.write_text(json.dumps(self._references))
            progress.advance(task)

    def _warm_start(self, progress: Progress, demonstrated: Demonstrations) -> None:
        seed = self.setting.seed
        torch.manual_seed(seed)
        self._take(Policy())
        cloning = progress.add_task("copy the teacher", total=CLONE_STEPS, note="")
        clone(self.policy.actor, demonstrated, CLONE_STEPS, seed, lambda: progress.advance(cloning))
        planning = progress.add_task("teach the diffusion", total=PLAN_STEPS, note="")
        teach_plans(self.policy.denoiser, PLAN_STEPS, seed, lambda: progress.advance(planning))

    def _take(self, policy: Policy) -> None:
        """Use another policy's weights, with gradients."""
        for mine, other in (
            (self.policy.actor, policy.actor),
            (self.policy.denoiser, policy.denoiser),
        ):
            mine.load_state_dict(other.state_dict())
            mine.requires_grad_(requires_grad=True)

    def _improve(self, progress: Progress, demonstrated: Demonstrations | None, steps: int) -> None:
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
            self._shadow,
            first_episode=len(self.curve),
        )
        refiner = Refiner(self.policy.denoiser, self.setting.seed)
        ppo = self._learner(env, refiner, demonstrated, progress)
        total = -(-steps // per_episode)
        task = progress.add_task("episodes", total=total, completed=len(self.curve), note="")
        try:
            while len(self.curve) < total:
                ppo.learn(per_episode, reset_num_timesteps=False)
                losses = [] if self.plain else refiner.refine(self.replay, REFINE_UPDATES)
                scenario, reward = env.returns[-1]
                self._note(scenario, reward, losses)
                _copy_actor(ppo, self.policy.actor)
                self._checkpoint(ppo, refiner)
                progress.update(task, advance=1, note=f"reward {reward:.3f}")
        finally:
            env.close()

    def _learner(
        self,
        env: FederationEnv,
        refiner: Refiner,
        demonstrated: Demonstrations | None,
        progress: Progress,
    ) -> PPO:
        checkpoint = self.out / "ppo.zip"
        if checkpoint.exists() and self.curve:
            state = torch.load(self.out / "diffusion.pt", weights_only=True)
            self.policy.denoiser.load_state_dict(state["denoiser"])
            refiner.optimizer.load_state_dict(state["optimizer"])
            refiner.generator.set_state(state["generator"])
            for name in ("latents", "plans", "rewards", "features"):
                setattr(self.replay, name, state[name])
            ppo = PPO.load(checkpoint, env=env, device="cpu")
            _copy_actor(ppo, self.policy.actor)
            return ppo
        ppo = PPO(
            "MlpPolicy",
            env,
            # Small steps get nowhere from random weights; large ones forget the teacher.
            learning_rate=1e-3 if self.plain else 1e-4,
            n_steps=self.setting.scenario.train.rounds,
            batch_size=32,
            n_epochs=10 if self.plain else 4,
            gamma=0.99,
            gae_lambda=0.95,
            clip_range=0.2,
            ent_coef=0.0,
            max_grad_norm=1.0,
            seed=self.setting.seed,
            device="cpu",
            policy_kwargs={
                "net_arch": {"pi": [64, 64], "vf": [64, 64]},
                "activation_fn": nn.Tanh,
                "log_std_init": PLAIN_LOG_STD if self.plain else LOG_STD,
                "ortho_init": True,
            },
        )
        if demonstrated is None:
            _copy_actor(ppo, self.policy.actor)
            return ppo
        for theirs, mine in _layers(ppo, self.policy.actor):
            theirs.load_state_dict(mine.state_dict())
        task = progress.add_task("teach the critic", total=CLONE_STEPS // 8, note="")
        _teach_critic(ppo, demonstrated, self.setting.seed, lambda: progress.advance(task))
        return ppo

    def _note(self, scenario: Scenario, reward: float, losses: list[float]) -> None:
        entry = {
            "episode": len(self.curve),
            "channel": scenario.channel.model,
            "snr_db": scenario.channel.snr_db[0],
            "seed": scenario.seed,
            "reward": reward,
            "diffusion_loss": sum(losses) / len(losses) if losses else None,
        }
        self.curve.append(entry)

    def _checkpoint(self, ppo: PPO, refiner: Refiner) -> None:
        ppo.save(self.out / "ppo.zip")
        torch.save(
            {
                "denoiser": self.policy.denoiser.state_dict(),
                "optimizer": refiner.optimizer.state_dict(),
                "generator": refiner.generator.get_state(),
                "latents": self.replay.latents,
                "plans": self.replay.plans,
                "rewards": self.replay.rewards,
                "features": self.replay.features,
            },
            self.out / "diffusion.pt",
        )
        self.policy.save(self.out / "policy.safetensors")
        lines = "".join(json.dumps(entry) + "\n" for entry in self.curve)
        replace_file(self.out / "curve.jsonl", lines.encode())
        draw_curves(self.out / "curves.png", self.curve)


def _layers(ppo: PPO, actor: Actor) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers of PPO's actor beside those of the policy."""
    theirs = ppo.policy.mlp_extractor.policy_net
    return [
        (theirs[0], actor.body[0]),
        (theirs[2], actor.body[2]),
        (ppo.policy.action_net, actor.mean),
    ]


def _copy_actor(ppo: PPO, actor: Actor) -> None:
    for theirs, mine in _layers(ppo, actor):
        mine.load_state_dict(theirs.state_dict())


def _teach_critic(
    ppo: PPO, demonstrated: Demonstrations, seed: int, advance: Callable[[], None]
) -> None:
    """Fit the critic to the teacher's values, or its first advantages would undo the warm start."""
    states = torch.from_numpy(demonstrated.states).float()
    values = torch.from_numpy(demonstrated.values).float()
    critic = nn.Sequential(ppo.policy.mlp_extractor.value_net, ppo.policy.value_net)
    fit(
        critic,
        lambda rows: nn.functional.mse_loss(critic(states[rows])[:, 0], values[rows]),
        len(states),
        CLONE_STEPS // 8,
        seed,
        advance,
    )


def _describe(setting: Setting, *, plain: bool) -> str:
    lines = [
        f"# training seed = {setting.seed}, price = {setting.price!r}, saving = {setting.saving!r}",
        f"# PPO alone = {plain}",
        f"# SNRs = {list(setting.snrs_db)}, channels = {list(setting.channels)}",
        f"# seeds = {list(setting.seeds)}",
        scenario_to_toml(setting.scenario),
    ]
    return "\n".join(lines)


def _read_curve(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
