from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.ranks import ClientReport, Projection, RankSpace
from simulations.train_policy.folder import TrainingFolder
from simulations.train_policy.profile import Profile, profile_ranks
from simulations.train_policy.rivals import Game
from simulations.train_policy.setting import Setting
from simulations.train_policy.teacher import (
    FRACTIONS,
    Fading,
    Planner,
    Result,
    demonstrate,
)
from simulations.train_policy.warm_start import noise_loss, random_space
from strategies.airllm import (
    LATENT,
    MOST_BIT_PRICE,
    MOST_END_WEIGHT,
    STATE_FEATURES,
    Denoiser,
    Weights,
    draft,
    drafted_parts,
    projection_features,
)
from strategies.airllm.network import CHANNELS
from strategies.airllm.plan import delivered_ranks
from strategies.greedy import Greedy
from strategies.hold import Hold

ROUNDS, R_MAX, PRICE = 6, 8, 0.2


@pytest.fixture(scope="module")
def profile():
    rounds = np.arange(1, ROUNDS + 1)
    ranks = np.array([0.0, 1, 2, 4, 8])
    losses = np.array([2.0 + 3.0 / (1 + r) ** 0.5 * np.exp(-0.3 * rounds) for r in ranks])
    losses[0] = 5.0
    return Profile(ranks, losses)


@pytest.fixture(scope="module")
def space():
    return RankSpace(tuple(Projection("q", layer, 32, 32) for layer in range(3)), R_MAX)


def scenario():
    base = Scenario()
    return replace(base, channel=replace(base.channel, deliver_every=1))


def setting(**more):
    given = {
        "scenario": scenario(),
        "seed": 0,
        "snrs_db": (0.0, 10.0),
        "channels": ("awgn", "rayleigh"),
        "seeds": (1000, 1001),
        "price": PRICE,
    }
    return Setting(**(given | more))


def test_the_profile_interpolates_in_rounds_and_in_the_logarithm_of_the_rank(profile):
    assert profile.loss(1.0, 4) == pytest.approx(profile.losses[3, -1])
    assert profile.loss(0.5, 2) == pytest.approx(profile.losses[2, 2])
    halfway = 2 ** ((np.log2(3) + np.log2(5)) / 2) - 1
    expected = profile.losses[2:4, -1].mean()
    assert profile.loss(1.0, halfway) == pytest.approx(expected)


def test_the_profiled_ranks_end_with_r_max():
    assert profile_ranks(16) == [0, 1, 2, 4, 8, 16]
    assert profile_ranks(6) == [0, 1, 2, 4, 6]
    assert profile_ranks(1) == [0, 1]


@pytest.mark.parametrize(
    ("snr_db", "weights"),
    [
        (-5.0, Weights()),
        (5.0, Weights()),
        (15.0, Weights()),
        (0.0, Weights(0.5, 4.0)),
        (10.0, Weights(2.0, 0.0)),
        (15.0, Weights(1.0, 16.0)),
    ],
)
def test_the_planner_is_as_good_as_the_best_of_all_schedules(profile, snr_db, weights):
    fading = Fading(snr_db, 2.0, rayleigh=False)
    rng = np.random.default_rng(0)
    planner = Planner(profile, fading, ROUNDS, R_MAX, PRICE, rng, weights)
    budget = float(fading.draw(rng, 1)[0])
    # Over a constant channel the mean budget is the budget.
    of_all = min(budget, R_MAX)

    def reward(schedule):
        loss, total = 5.0, 0.0
        for round_, send in enumerate(schedule, 1):
            loss = planner.new_loss(round_, budget, send, loss)
            sent = send * of_all
            total -= loss + PRICE * planner.cost(budget, send) + weights.bit_price * sent / of_all
        return total - weights.end_weight * loss

    best = max(map(reward, itertools.product(FRACTIONS, repeat=ROUNDS)))
    loss, chosen = 5.0, []
    for round_ in range(1, ROUNDS + 1):
        chosen.append(planner.choose(round_, budget, loss))
        loss = planner.new_loss(round_, budget, chosen[-1], loss)
    near = 0.02 * (1 + weights.end_weight)  # the losses are on a grid
    assert reward(chosen) == pytest.approx(best, abs=near)
    assert planner.value(1, 5.0) == pytest.approx(best, abs=near)


def test_what_is_wanted_is_what_is_done(profile):
    def played(weights):
        fading = Fading(5.0, 2.0, rayleigh=True)
        planner = Planner(profile, fading, ROUNDS, R_MAX, PRICE, np.random.default_rng(0), weights)
        loss, sent = np.full(400, 5.0), 0.0
        for round_ in range(1, ROUNDS + 1):
            budget = fading.draw(np.random.default_rng([1, round_]), 400)
            part = planner.choose(round_, budget, loss)
            loss = planner.new_loss(round_, budget, part, loss)
            sent += float((part * np.minimum(budget, R_MAX)).mean())
        return sent, float(loss.mean())

    plain, thrifty, ending = map(played, (Weights(), Weights(1.0, 0.0), Weights(0.0, 8.0)))
    assert thrifty[0] < 0.8 * plain[0]
    assert ending[1] < plain[1] < thrifty[1]


def test_a_game_is_played_by_the_rules_of_the_table(profile, space):
    fading = Fading(5.0, 2.0, rayleigh=False)
    game = Game(profile, space, fading, ROUNDS, 2, PRICE)
    budget = float(fading.draw(np.random.default_rng(0), 1)[0])
    report = ClientReport(budget_bits=budget * space.bits(space.uniform(1)))
    rank = Greedy().allocate(1, {"0": report}, space)["0"].deliver.mean
    every, other = game.play(Greedy(), 0), game.play(Greedy(every=2), 0)
    assert every == game.play(Hold(), 0)  # a constant channel has no fades
    losses = [float(profile.loss(t / ROUNDS, rank)) for t in range(1, ROUNDS + 1)]
    cost = PRICE * rank / budget
    assert every.reward == pytest.approx(-np.mean(losses) - cost)
    assert other.reward == pytest.approx(-np.mean(np.repeat(losses[::2], 2)) - cost / 2)
    assert (every.sent, other.sent) == pytest.approx((ROUNDS * rank, ROUNDS * rank / 2))
    assert other.final_loss == pytest.approx(losses[-2])


def test_fading_has_the_mean_power_of_the_snr():
    draws = Fading(10.0, 1.0, rayleigh=True).draw(np.random.default_rng(0), 20_000)
    assert np.mean(2**draws - 1) == pytest.approx(10.0, rel=0.03)
    steady = Fading(10.0, 1.0, rayleigh=False).draw(np.random.default_rng(0), 2)
    assert steady == pytest.approx([np.log2(11)] * 2)


def test_demonstrations_send_at_first_and_hold_finite_states(profile, space):
    rng = np.random.default_rng(0)
    fading = Fading(5.0, 2.0, rayleigh=True)
    shown, _ = demonstrate(profile, space, fading, ROUNDS, PRICE, rng, clients=3, train_latent=-0.2)
    assert shown.states.shape == (3 * ROUNDS, len(STATE_FEATURES))
    assert np.all(np.isfinite(shown.states))
    assert np.all((shown.weights >= 0) & (shown.weights <= 1))
    assert np.all(shown.latents[:3, 0] > 0)
    assert set(shown.latents[:, 2]) == {-0.2}
    assert shown.latents.shape == shown.weights.shape == (3 * ROUNDS, LATENT)


def test_what_a_student_does_is_told_from_what_the_teacher_would_do_there(profile, space):
    fading = Fading(5.0, 2.0, rayleigh=True)
    seen = []

    def idle(states):
        seen.append(states)
        return np.zeros(len(states))

    shown, result = demonstrate(
        profile,
        space,
        fading,
        ROUNDS,
        PRICE,
        np.random.default_rng(0),
        clients=2,
        train_latent=-0.2,
        student=idle,
    )
    assert np.array_equal(np.concatenate(seen), shown.states)
    assert np.all(shown.states[:, STATE_FEATURES.index("never_delivered")] == 1)
    # Nobody has an adapter, as nothing was ever sent, so the teacher goes on asking for it.
    assert np.all(shown.latents[:, 0] > 0)
    assert result == Result(-5.0, 0.0, 5.0)


def test_the_draft_of_a_latent_spends_its_part_of_the_budget():
    space = RankSpace(tuple(Projection("q", layer, 32, 32) for layer in range(3)), 16)
    rng = np.random.default_rng(0)
    latents = np.hstack([rng.uniform(-1, 1, (200, 3)), np.zeros((200, 2))])
    plans = draft(
        torch.from_numpy(latents).float(), torch.from_numpy(projection_features(space)).float()
    )
    budget = space.bits(space.uniform(8))
    spent = [
        space.bits(delivered_ranks(plan.astype(float), space, budget)) / budget
        for plan in plans.numpy()
    ]
    assert drafted_parts(latents) == pytest.approx(np.array(spent), abs=0.05)
    assert set(drafted_parts(latents)) == {0.0, 0.5, 0.75, 1.0}


def test_episodes_take_turns_through_snrs_and_channels_with_training_seeds():
    drawn = [setting().episode(number) for number in range(4)]
    met = {(s.channel.model, s.channel.snr_db) for s in drawn}
    assert met == {(c, (snr,)) for c in ("awgn", "rayleigh") for snr in (0.0, 10.0)}
    assert {s.seed for s in drawn} <= {1000, 1001}
    assert [setting().episode(number) for number in range(4)] == drawn
    assert all(not s.evaluate.baseline and s.evaluate.every == 1 for s in drawn)


def test_episodes_differ_in_what_is_wanted_unless_the_reward_alone_counts():
    drawn = [setting().weights_of(number) for number in range(200)]
    assert [setting().weights_of(number) for number in range(200)] == drawn
    for name, most in (("bit_price", MOST_BIT_PRICE), ("end_weight", MOST_END_WEIGHT)):
        values = np.array([getattr(weights, name) for weights in drawn])
        assert 0.15 < np.mean(values == 0) < 0.35
        assert 0.8 * most < values.max() <= most
    assert setting(weighted=False).weights_of(3) == Weights()


def test_a_scenario_with_a_training_seed_is_refused():
    with pytest.raises(FedloraError, match="seeds from 1000 on train policies"):
        setting(scenario=replace(scenario(), seed=1000))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"price": float("nan")}, "--price is nan; set a finite number"),
        ({"channels": ("awgn", "raileigh")}, "did you mean rayleigh?"),
        ({"channels": ("awgn", "awgn")}, "--channels is awgn,awgn; name each channel model once"),
        ({"channels": ("measured",)}, "which is what devices measure; choose simulated"),
        ({"scenario": Scenario()}, "deliver_every is 0, so that no adapter is ever sent"),
    ],
)
def test_a_setting_that_cannot_be_trained_on_is_refused(more, message):
    with pytest.raises(FedloraError, match=re.escape(message)):
        setting(**more)


def test_a_training_folder_goes_on_with_the_same_settings_alone(tmp_path):
    folder = TrainingFolder(tmp_path / "out", setting(), resume=False, plain=False)
    folder.write_references({"1000": [{"0": 1.5}]})
    with pytest.raises(FedloraError, match="holds an earlier training; go on with it by --resume"):
        TrainingFolder(folder.path, setting(), resume=False, plain=False)
    for other in ({"setting": setting(price=0.3)}, {"plain": True}):
        with pytest.raises(FedloraError, match="a training with other settings"):
            TrainingFolder(
                folder.path, **({"setting": setting(), "plain": False} | other), resume=True
            )
    again = TrainingFolder(folder.path, setting(), resume=True, plain=False)
    assert again.read_references() == {"1000": [{"0": 1.5}]}
    for name, read in (
        ("references", again.read_references),
        ("profile", again.read_profile),
    ):
        for damaged in ("{", '"text"'):
            (folder.path / f"{name}.json").write_text(damaged)
            with pytest.raises(FedloraError, match=rf"{name}\.json is damaged .*remove it"):
                read()


def test_a_folder_with_something_else_is_not_trained_in(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FedloraError, match="is not empty and holds no earlier training"):
        TrainingFolder(tmp_path, setting(), resume=True, plain=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_random_models_have_features_in_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        features = projection_features(random_space(rng))
        assert np.all(np.abs(features) <= 1.5)


def test_a_denoiser_that_says_nothing_has_the_loss_of_the_noise():
    denoiser = Denoiser()
    for parameter in denoiser.parameters():
        torch.nn.init.zeros_(parameter)
    plans, latents = torch.zeros(4000, 3, CHANNELS), torch.zeros(4000, LATENT)
    generator = torch.Generator().manual_seed(0)
    loss = noise_loss(denoiser, plans, torch.zeros(3, 4), latents, generator)
    assert loss.shape == (4000,)
    assert loss.mean().item() == pytest.approx(1.0, abs=0.03)


def test_rewards_weigh_the_diffusion_only_after_the_warm_up():
    from simulations.train_policy.replay import WARM_UP, Refiner, Replay

    torch.manual_seed(0)
    denoiser = Denoiser()
    before = [p.clone() for p in denoiser.parameters()]
    replay, refiner = Replay.empty(), Refiner(denoiser, 0)
    features = torch.zeros(3, 4)

    def add(count):
        plans = torch.zeros(count, 3, CHANNELS)
        replay.add(torch.zeros(count, LATENT), plans, features, np.ones(count))

    add(WARM_UP - 1)
    assert refiner.refine(replay, 2) == []
    add(1)
    assert len(refiner.refine(replay, 2)) == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))


def test_the_replay_forgets_the_oldest(monkeypatch):
    from simulations.train_policy import replay as module

    monkeypatch.setattr(module, "CAPACITY", 5)
    replay = module.Replay.empty()
    for value in range(3):
        latents, plans = torch.zeros(2, LATENT), torch.zeros(2, 3, CHANNELS)
        replay.add(latents, plans, torch.zeros(3, 4), np.full(2, float(value)))
    assert replay.rewards.tolist() == [0, 1, 1, 2, 2]
