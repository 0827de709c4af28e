"""The audit sees what the server sees: without noise it wins, with noise it stays in its bound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.private_federation import scenario, write_records

from clients.owner import Door, Leaving, OwnerTerms, Private, Reporting
from clients.release.base import PlainRelease
from clients.release.build import build_release
from fedlora.config import PrivacyPolicy, Scenario
from fedlora.privacy.mechanisms import SystemNoise, release as noised
from fedlora.report import RunFolder
from fedlora.report.gallery import AUDIT_GALLERY
from fedlora.report.page import render
from fedlora.server.compute import ClientRows
from simulations.audit import gradients, labels, members, tokens
from simulations.audit.attacks.auc import label_auc_bound
from simulations.audit.attacks.gradient_inversion import AdapterGradients
from simulations.audit.attacks.inverter import Fit
from simulations.audit.audit import audit_scenario, noise_of_the_whole_run
from simulations.audit.canaries import plant, planted
from simulations.audit.effort import Effort
from simulations.audit.mechanism import audit_client
from simulations.audit.plot import draw_all
from simulations.audit.recording import Observed, observe, sample_order

PLAIN = PrivacyPolicy()
FIT = Fit(steps=5, rows=4)


def short(config: Scenario, steps: int = 6) -> Scenario:
    return replace(config, train=replace(config.train, rounds=1, steps=steps))


@pytest.fixture(scope="module")
def exact(records: Path) -> Observed:
    return observe(replace(short(scenario(records)), privacy=PLAIN))


@pytest.fixture(scope="module")
def language(records: Path) -> Observed:
    config = scenario(records, "task.kind=causal_lm", "head.share=personal", "data.label=")
    return observe(replace(short(config, 2), privacy=PLAIN), evaluate=False)


def test_without_noise_labels_and_tokens_are_recovered(exact: Observed) -> None:
    assert len(exact.uploads) == 2 * 6
    found = labels.attack_labels(labels.labelled(exact.uploads, PLAIN), PLAIN)
    assert found["likelihood"]["auc"] > 0.95
    assert found["exact"]["accuracy"] == 1.0
    inverter = tokens.learn(exact.parts, tokens.public_text(exact), FIT)
    recovered = inverter.recover(exact)
    assert recovered["token_accuracy"] > 0.99
    assert recovered["inverter_accuracy"] > 0.95


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_with_noise_no_label_attack_passes_its_bound(tmp_path: Path, release: str) -> None:
    overrides = f"privacy.release={release}", "privacy.uploads=1", "train.batch_size=20"
    config = short(scenario(write_records(tmp_path / "many.csv", 200), *overrides), 4)
    config = replace(config, privacy=replace(config.privacy, insecure_noise_seed=1))
    seen = observe(config, evaluate=False)
    found = labels.attack_labels(labels.labelled(seen.uploads, config.privacy), config.privacy)
    for name in ("norm", "direction", "likelihood"):
        assert found[name]["low"] <= label_auc_bound(2.0)


def test_who_was_not_reached_is_compared_with_who_was(exact: Observed, tmp_path: Path) -> None:
    reached = {(upload.client, number) for upload in exact.uploads for number in upload.samples}
    found = members.pool(exact, [])
    of_training = {
        id(sample): (client.name, number)
        for client in exact.clients
        for number, sample in enumerate(client.door.truth(client.train))
    }
    assert {of_training[id(sample)] for sample in found.members} <= reached
    assert found.outsiders
    whole = members.pool(exact, [], dict.fromkeys(range(2), 1000))
    assert not {id(sample) for sample in whole.outsiders} & set(of_training)
    assert not whole.other_file


def test_members_of_a_stored_run_are_those_that_its_rounds_have_reached(
    exact: Observed, tmp_path: Path
) -> None:
    """Less than a pass, of one client, up to the round that was kept."""
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append_round({"round": number, "clients": {"1": {"rows": 4}}})
    folder.summary.write_text('{"kept_round": 2}')
    rows = members.trained_rows(folder)
    assert dict(rows) == {1: 8}
    found = members.pool(exact, [], rows)
    truth = exact.clients[1].door.truth(exact.clients[1].train)
    first = sample_order(exact.server.scenario, len(truth), 1, 2)  # batches of four
    assert {id(sample) for sample in found.members} == {id(truth[number]) for number in first}
    assert len(found.members) == 8 < len(truth)
    assert {id(sample) for sample in found.outsiders} > {
        id(truth[number]) for number in set(range(len(truth))) - set(first)
    }


def test_clients_of_unequal_size_keep_their_own_noise(tmp_path: Path) -> None:
    lines = [
        f"{'snow' if n % 2 else 'sun'} {n},{n % 2},{'small' if n < 24 else 'large'}"
        for n in range(424)
    ]
    data = tmp_path / "unequal.csv"
    data.write_text("text,label,owner\n" + "\n".join(lines) + "\n")
    config = scenario(
        data,
        "partition.kind=column",
        "partition.column=owner",
        "privacy.release=row_space",
        "privacy.sigma=none",
        "privacy.epsilon=8.0",
        "train.rounds=4",
        "train.steps=20",
    )
    policies = noise_of_the_whole_run(config)
    (few, small), (many, large) = sorted((p.sigma, p.uploads) for p in policies.values())
    assert few < many and small < large
    seen = observe(short(config, 3), policies=policies, evaluate=False)
    assert sorted(client.scenario.privacy.sigma or 0.0 for client in seen.clients) == [few, many]
    assert seen.server.training.summary_fields()["privacy"]["epsilon"] < 8.0


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_over_sigma_the_best_label_attack_follows_its_bound(exact: Observed, release: str) -> None:
    curve = labels.label_auc_over_sigma(exact.uploads, release, clip_norm=0.001)
    for point in curve:
        assert point["low"] - 0.03 < point["bound"]
        if release == "logits":  # any two labels are 2C apart, so the attack is as strong
            assert point["high"] + 0.03 > point["bound"]
    assert curve[0]["auc"] > 0.99
    strict = next(point for point in curve if point["sigma"] == labels.STRICT_SIGMA)
    assert strict["bound"] < 0.6
    assert strict["auc"] < 0.63


def test_the_tap_sees_the_activations_of_each_cut_depth(records: Path) -> None:
    config = replace(short(scenario(records, "model.client_front=2"), 2), privacy=PLAIN)
    seen = observe(config, evaluate=False)
    got = tokens.received(seen)
    front = seen.parts.model.front
    expected = front(got.ids, got.lengths)
    torch.testing.assert_close(got.activations, expected.detach(), atol=1e-4, rtol=1e-4)
    inverter = tokens.learn(seen.parts, [tuple(got.ids[: got.lengths[0]].tolist())], FIT)
    assert inverter.recover(seen)["tokens"] == len(got.ids)


def test_noised_activations_hide_tokens(records: Path) -> None:
    config = scenario(records, "privacy.activation_sigma=5.0")
    seen = observe(short(config, 2), evaluate=False)
    noise = tokens.ActivationNoise(5.0, config.privacy.activation_clip_norm)
    text = [sample.ids for client in seen.clients for sample in client.door.truth(client.train)]
    assert tokens.learn(seen.parts, text, FIT, noise).recover(seen)["token_accuracy"] < 0.1


def test_noise_on_activations_alone_leaves_gradients_exact(records: Path) -> None:
    config = replace(short(scenario(records), 3), privacy=PLAIN)
    seen = observe(config, activation_sigma=0.5, evaluate=False)
    found = labels.labelled(seen.uploads, PLAIN)
    assert found.distances is not None
    assert torch.equal(found.distances.argmin(1), found.label)
    first, again = {}, 0
    for upload in seen.uploads:
        parts = torch.split(upload.activation, list(upload.lengths))
        for number, part in zip(upload.samples, parts, strict=True):
            key = upload.client, number
            again += key in first
            assert torch.equal(first.setdefault(key, part), part)  # drawn once
    assert seen.uploads


def test_gradients_of_a_language_model_give_its_text_away(language: Observed) -> None:
    found = tokens.recover_next_tokens(language)
    assert found["accuracy"] > 0.99
    assert "text" in gradients.applies(language)


def test_adapter_gradients_of_a_sample_are_the_engines(exact: Observed) -> None:
    engine, upload = exact.server.engine, exact.uploads[-1]
    length = upload.lengths[0]
    e, g = upload.activation[:length], upload.gradient[:1]
    engine.forward([ClientRows(e, [length], engine.full_ranks())], train=True)
    engine.backward([g], [1.0])
    expected = [f.grad.clone() for p in engine.projections for f in (p.A, p.B)]
    engine.update.optimizer.zero_grad()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return engine.blocks(x[0], [length])[-1:]

    with AdapterGradients(forward, engine.projections) as gradients_of:
        found = gradients_of(e[None], lambda z: g)
    scale = engine.scenario.lora.alpha / engine.r_max
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(scale * own[0], theirs, atol=1e-6, rtol=1e-3)


def test_gradient_inversion_finds_inputs_with_like_gradients(exact: Observed) -> None:
    assert gradients.applies(exact) == ""
    before = exact.server.engine.adapter()
    start, end = (gradients.invert(exact, samples=2, steps=steps) for steps in (1, 30))
    assert end["distance"] < 0.7 * start["distance"]
    after = exact.server.engine.adapter()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_canaries_carry_their_coin_into_training(records: Path) -> None:
    config = replace(short(scenario(records), 8), privacy=PLAIN)
    canaries = plant(config, 8)
    assert 0 < len(canaries) <= 8
    seen = observe(config, planted=planted(canaries), evaluate=False)
    names = seen.parts.model.task.labels
    for canary in canaries:
        holder = seen.clients[canary.client]
        sample = holder.door.truth(holder.train)[canary.row]
        assert names[sample.target] == canary.planted
        assert canary.planted in canary.labels
        assert seen.data.records[0]  # the data themselves stay as they are


def audited(records: Path, release: str = "logits") -> Scenario:
    return scenario(records, f"privacy.release={release}", "privacy.unit=sample")


@pytest.mark.parametrize("release", ["row_space"])
def test_what_a_client_really_uploads_passes_the_audit(records: Path, release: str) -> None:
    found = audit_client(audited(records, release), 1.276)
    assert found.passed
    assert found.mu_lower > 0.8 * found.mu


class HalfNoise(PlainRelease):
    """A client whose noise is half of what it says."""

    def __init__(self) -> None:
        door = Door(OwnerTerms())
        super().__init__(door, Reporting(door))

    def __call__(
        self, gradient: Private[torch.Tensor], lengths: Sequence[int], samples: Sequence[int]
    ) -> Leaving[torch.Tensor]:
        noise = SystemNoise()
        made = gradient.map(
            lambda g: noised(g, lengths, clip_norm=0.05, sigma=0.638, noise=noise).values
        )
        return self.door.released(made, (), ())


def test_a_client_that_adds_half_the_noise_is_caught(records: Path) -> None:
    found = audit_client(audited(records, "full"), 1.276, lambda *args, **kwargs: HalfNoise())
    assert not found.passed


def test_a_client_whose_noise_follows_from_a_seed_is_caught(records: Path) -> None:
    config = audited(records, "full")
    seeded = replace(config, privacy=replace(config.privacy, insecure_noise_seed=7))
    found = audit_client(seeded, 5.6, build_release)
    assert not found.passed
    assert found.by_attacker["replay"] > found.mu


def test_an_audit_reports_both_sides_and_lands_in_the_report(records: Path, tmp_path: Path) -> None:
    effort = Effort(3, 1, (0.5,), FIT, 1, 2, 1, mechanism_levels=1)
    result = audit_scenario(scenario(records), effort)
    assert result["passed"]
    assert result["without_noise"]["label"]["likelihood"]["auc"] > 0.95
    assert result["with_noise"]["token"]["token_accuracy"] > 0.99  # activations are not covered
    assert result["label_auc_bound"] < 0.77  # measured on too few uploads here to compare
    for found in result["mechanism"]:
        assert 0 < found["epsilon_lower_bound"] <= found["epsilon_one_upload"]
    assert [p["depth"] for p in result["token_accuracy_over_depth"]] == [0]
    assert result["activation_noise"][0]["epsilon"] > 10
    assert set(result["with_noise"]["membership"]) == {"loss", "calibrated", "likelihood_ratio"}
    assert any("trusted with the inputs" in text for text in result["findings"])

    folder = RunFolder(tmp_path)
    folder.audit.write_text(json.dumps(result))
    drawn = {path.stem for path in draw_all(result, folder.plots)}
    assert drawn == {plot.name for plot in AUDIT_GALLERY}
    page = render(folder)
    assert "<h2>Audit</h2>" in page
    assert page.count("data:image/png") == len(AUDIT_GALLERY)
    for sentence in result["findings"]:
        assert sentence[:40].replace("'", "&#39;") in page


def test_a_language_model_is_audited_without_what_does_not_apply(records: Path) -> None:
    config = scenario(records, "task.kind=causal_lm", "head.share=personal", "data.label=")
    result = audit_scenario(replace(config, privacy=PLAIN), Effort(2, 1, (), FIT, 1, 2, 1))
    assert result["without_noise"]["next_token"]["accuracy"] > 0.99
    assert "with_noise" not in result
    skipped = " ".join(result["not_run"])
    assert "label inference" in skipped and "gradient inversion" in skipped
    assert {row[0].split(",")[0] for row in result["rows"]} >= {"tokens"}
