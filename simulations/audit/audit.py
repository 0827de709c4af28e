"""The audit of a scenario: which attacks are run, on what, and what they come to."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from clients.build import EdgeParts
from clients.simulated_data import SimulatedData
from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import exact_epsilon, upload_cost
from fedlora.privacy.mechanisms import mechanism_of
from fedlora.report import RunFolder
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import task_class
from simulations.audit import gradients, labels, members, tokens
from simulations.audit.canaries import Canary, guess_canaries, plant, planted
from simulations.audit.effort import Effort
from simulations.audit.final_model import (
    Model,
    losses,
    reference_model,
    stored_model,
    trained_model,
)
from simulations.audit.findings import findings, table_rows
from simulations.audit.mechanism import audit_noise
from simulations.audit.members import Pool
from simulations.audit.recording import Observed, observe
from simulations.audit.stages import Advance, Stages

Result = dict[str, Any]


class Audit:
    """One audit.

    Parameters
    ----------
    scenario
        What is audited; without a privacy section it is audited without noise alone.
    effort
        How much is done.
    folder
        Run whose adapter the membership attack is made on; by default the tapped runs' own.
    stages
        Shows progress.
    """

    def __init__(
        self,
        scenario: Scenario,
        effort: Effort,
        folder: RunFolder | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.scenario = scenario
        self.effort = effort
        self.folder = folder
        self.stages = stages or Stages()
        self.pooled = task_class(scenario.task.kind).pooled
        self.short = replace(
            scenario,
            train=replace(scenario.train, rounds=1, steps=effort.steps, warmup_steps=0),
            evaluate=replace(scenario.evaluate, baseline=False, report=True),
            federation=replace(scenario.federation, clients_per_round=0),
        )
        self.plain = replace(self.short, privacy=PrivacyPolicy())
        self.skipped: dict[str, str] = {}
        self.text: list[tuple[int, ...]] = []
        self._inverters: dict[Any, tokens.Inverter] = {}
        self._references: list[Model] = []

    def run(self) -> Result:
        """Make every attack that applies, and return the figures."""
        started = time.monotonic()
        policy, effort = self.scenario.privacy, self.effort
        depths = self._depths()
        self.stages.expect(4 + 3 * policy.enabled + len(depths) + len(effort.noises))
        canaries = self._canaries()
        plain = self._observe("run without noise", self.plain, canaries)
        self.text = tokens.public_text(plain)
        if not self.text:
            raise FedloraError(
                f"scenario {self.scenario.name} holds no rows out, so the attacker has no text of "
                "its own; set data.test, or data.holdout above 0"
            )
        result: Result = {
            "scenario": self.scenario.name,
            "task": self.scenario.task.kind,
            "classes": len(plain.parts.model.task.labels),
            "steps": effort.steps,
            "delta": policy.delta,
            "cut_depth": self.scenario.model.client_front,
            "metric_name": plain.metric_name,
            "without_noise": self._attack(plain, PrivacyPolicy(), canaries),
            "passed": True,
        }
        self._judge_members(plain, canaries)
        result["without_noise"]["membership"] = self._membership(trained_model(plain))
        if policy.enabled:
            self._with_noise(result, plain, canaries)
        result["token_accuracy_over_depth"] = [self._depth(d, plain) for d in depths]
        result["activation_noise"] = [self._noise(s) for s in effort.noises]
        if self.folder is not None and self._references:
            result["membership_of_run"] = self._stored(plain, canaries)
        if self._references:
            result["outsiders_of_another_file"] = self._pool.other_file
        result["not_run"] = [f"{name}: {why}" for name, why in self.skipped.items()]
        result["seconds"] = time.monotonic() - started
        result["rows"] = table_rows(result)
        result["findings"] = findings(result)
        return result

    def _with_noise(self, result: Result, plain: Observed, canaries: list[Canary]) -> None:
        policy = self.scenario.privacy
        sigma, private, policies = None, policy, None
        mechanism = mechanism_of(policy)
        if mechanism is not None and mechanism.noises_gradients:
            policies = noise_of_the_whole_run(self.scenario)
            private = min(policies.values(), key=lambda own: own.sigma or 0.0)
            sigma = private.sigma
        config = replace(self.short, privacy=private)
        noisy = self._observe("run with noise", config, canaries, policies)
        spent = noisy.server.training.summary_fields()["privacy"]
        result |= {
            "release": policy.release,
            "sigma": sigma,
            "uploads_planned": private.uploads,
            "epsilon": spent["epsilon"],
            "label_auc_bound": float(spent["label_auc_bound"] or 1.0),
            "activation_sigma": policy.activation_sigma,
            "with_noise": self._attack(noisy, private, canaries),
        }
        result["with_noise"]["membership"] = self._membership(trained_model(noisy))
        if sigma is None:
            self.skipped["audit of the mechanism, label inference over sigma"] = (
                "privacy.release labels randomises labels and adds no Gaussian noise"
            )
            return
        levels = self.effort.mechanism_levels
        with self.stages.stage("audit of the mechanism", levels) as advance:
            result["mechanism"] = audit_noise(self.short, sigma, advance, levels=levels)
            result["passed"] = all(found["passed"] for found in result["mechanism"])
        if self.pooled and labels.labelled(plain.uploads, PrivacyPolicy()).distances is not None:
            result["label_auc_over_sigma"] = labels.label_auc_over_sigma(
                plain.uploads, policy.release, policy.clip_norm
            )

    def _observe(
        self,
        name: str,
        scenario: Scenario,
        canaries: list[Canary],
        policies: Mapping[int, PrivacyPolicy] | None = None,
    ) -> Observed:
        with self.stages.stage(name, self.effort.steps) as advance:
            return observe(scenario, planted=planted(canaries), policies=policies, advance=advance)

    def _attack(self, seen: Observed, policy: PrivacyPolicy, canaries: list[Canary]) -> Result:
        found: Result = {}
        if self.pooled:
            found["label"] = labels.attack_labels(labels.labelled(seen.uploads, policy), policy)
            if "likelihood" not in found["label"]:
                self.skipped["label inference by likelihood"] = (
                    "the server does not know what the head is given or the head itself "
                    "(head.share, model.client_back)"
                )
            if canaries:
                found["canaries"] = guess_canaries(seen, canaries, policy.delta)
        elif self.scenario.model.client_back == 0:
            found["next_token"] = tokens.recover_next_tokens(seen)
        else:
            self.skipped["next tokens from gradients"] = (
                "the client holds blocks after the cut (model.client_back)"
            )
        noise = None
        if policy.activation_sigma is not None:
            noise = tokens.ActivationNoise(policy.activation_sigma, policy.activation_clip_norm)
        found["token"] = self._inverter(seen.parts, noise).recover(seen)
        found["metric"] = seen.metric
        why = gradients.applies(seen)
        if why:
            self.skipped["gradient inversion"] = why
        else:
            steps = self.effort.inversion_steps
            with self.stages.stage("gradient inversion", steps) as advance:
                found["gradient_inversion"] = gradients.invert(
                    seen, self.effort.inverted, steps, advance
                )
        return found

    def _canaries(self) -> list[Canary]:
        if not self.pooled:
            self.skipped["label inference, label canaries"] = (
                "a language model's labels are its text, so there is no class to tell apart"
            )
            return []
        exchanges = self.effort.steps * self.short.train.accumulate
        return plant(self.short, exchanges)

    def _inverter(
        self,
        parts: EdgeParts,
        noise: tokens.ActivationNoise | None = None,
        advance: Advance | None = None,
    ) -> tokens.Inverter:
        """Train an inverter, or return the one that was trained for the same cut and noise."""
        key = parts.scenario.model.client_front, noise
        if key not in self._inverters:
            fit = self.effort.fit
            if advance is None:
                with self.stages.stage("learned inverter", fit.steps) as own:
                    learned = tokens.learn(parts, self.text, fit, noise, own)
            else:
                learned = tokens.learn(parts, self.text, fit, noise, advance)
            self._inverters[key] = learned
        return self._inverters[key]

    def _judge_members(self, plain: Observed, canaries: list[Canary]) -> None:
        """Choose whose membership is guessed, and train the reference models."""
        self._pool = members.pool(plain, canaries)
        if len(self._pool.own) < 2 or not self._pool.outsiders:
            self.skipped["membership inference"] = (
                f"{len(self.text)} held-out rows are too few to divide between the attacker and "
                "the samples that nobody trained on"
            )
            return
        total = self.effort.references * self.effort.steps
        with self.stages.stage("reference models", total) as advance:
            self._references = [
                reference_model(plain, self._pool.own, number, advance)
                for number in range(self.effort.references)
            ]
        self._outside = self._reference_losses(self._pool)

    def _reference_losses(self, pool: Pool) -> torch.Tensor:
        return torch.stack([losses(model, pool.samples) for model in self._references])

    def _membership(self, model: Model) -> Result:
        if not self._references:
            return {}
        return dict(members.attack(model, self._pool, self._outside))

    def _stored(self, plain: Observed, canaries: list[Canary]) -> Result:
        """Attack the adapter that the run itself left."""
        assert self.folder is not None
        self._pool = members.pool(plain, canaries, members.trained_rows(self.folder))
        if not self._pool.members or not self._pool.outsiders:
            self.skipped["membership inference on the run's adapter"] = (
                "its rounds tell of no row that it was trained on, or of none that it was not"
            )
            return {}
        model = stored_model(plain, self.folder)
        return dict(members.attack(model, self._pool, self._reference_losses(self._pool)))

    def _depths(self) -> list[int]:
        """Return the cut depths at which tokens are recovered: from 0 on, the run's own too."""
        blocks = Checkpoint(model_folder(self.scenario.model.path)).blocks
        deepest = max(0, blocks - self.scenario.model.client_back - 1)
        count = min(self.effort.depths, deepest + 1)
        spread = {round(i * deepest / max(1, count - 1)) for i in range(count)}
        return sorted(spread)

    def _depth(self, depth: int, plain: Observed) -> Result:
        with self.stages.stage(f"tokens at cut depth {depth}", self.effort.fit.steps) as advance:
            seen = plain
            if depth != self.scenario.model.client_front:
                model = replace(self.scenario.model, client_front=depth)
                train = replace(self.plain.train, steps=2)
                seen = observe(replace(self.plain, model=model, train=train), evaluate=False)
            return {"depth": depth, **self._inverter(seen.parts, None, advance).recover(seen)}

    def _noise(self, sigma: float) -> Result:
        """Recover tokens from noised activations, and see what the noise costs."""
        clip_norm = self.scenario.privacy.activation_clip_norm
        total = self.effort.steps + self.effort.fit.steps
        with self.stages.stage(f"activations with noise {sigma:g}", total) as advance:
            config = replace(self.plain, privacy=PrivacyPolicy(activation_clip_norm=clip_norm))
            seen = observe(config, activation_sigma=sigma, advance=advance)
            noise = tokens.ActivationNoise(sigma, clip_norm)
            found = self._inverter(seen.parts, noise, advance).recover(seen)
        epsilon = exact_epsilon(upload_cost(sigma), self.scenario.privacy.delta)
        return {
            "sigma": sigma,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            **found,
            "metric": seen.metric,
        }


def audit_scenario(
    scenario: Scenario,
    effort: Effort | None = None,
    folder: RunFolder | None = None,
    stages: Stages | None = None,
) -> Result:
    """Attack a scenario with and without its noise, and return the figures; see ``Audit``."""
    return Audit(scenario, effort or Effort(), folder, stages).run()


def noise_of_the_whole_run(scenario: Scenario) -> dict[int, PrivacyPolicy]:
    """Return each client's privacy, with the noise of the whole run in place of its epsilon."""
    data = SimulatedData(scenario, scenario.federation.clients)
    mechanism = mechanism_of(scenario.privacy)
    assert mechanism is not None
    plans = {
        client: mechanism.plan(scenario, len(data.rows_of(client)[0]))
        for client in range(scenario.federation.clients)
    }
    return {
        client: replace(scenario.privacy, epsilon=None, sigma=plan.sigma, uploads=plan.uploads)
        for client, plan in plans.items()
    }
