from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedlora.ranks import (
    ChannelState,
    ClientOutcome,
    ClientReport,
    DataStatistics,
    FedloraError,
    Projection,
    RankSpace,
    check_rank_strategy,
    pack_state,
    unpack_state,
)
from strategies.airllm import (
    STATE_FEATURES,
    Actor,
    Policy,
    draft,
    load_policy,
    projection_features,
    trained_ranks,
)
from strategies.airllm.features import WEIGHT_FEATURES
from strategies.airllm.plan import SMALLEST_SHARE, TILT_STEP, delivered_ranks
from strategies.airllm.policy import SHIPPED
from strategies.airllm.strategy import AirLlm


def space_of(layers, width, r_max=16):
    shapes = {
        "q": (width, width),
        "k": (width, width // 2),
        "v": (width, width // 2),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    return RankSpace(
        tuple(Projection(n, layer, *s) for layer in range(layers) for n, s in shapes.items()), r_max
    )


@pytest.fixture(scope="module")
def small():
    return space_of(2, 64)


def reports(space, *uniform_ranks):
    unit_bits = space.bits(space.uniform(1))
    return {str(i): ClientReport(budget_bits=r * unit_bits) for i, r in enumerate(uniform_ranks)}


@pytest.mark.parametrize(("layers", "width", "r_max"), [(2, 64, 16), (12, 96, 8), (1, 32, 1)])
def test_it_passes_the_check_for_any_model(layers, width, r_max):
    assert check_rank_strategy(AirLlm(), space_of(layers, width, r_max)) == []
    assert check_rank_strategy(AirLlm(rounds=10, use_statistics=False)) == []


def test_the_shipped_policy_is_small_and_says_how_it_was_made():
    assert SHIPPED.stat().st_size < 5_000_000
    assert load_policy(SHIPPED).trained_on["command"].startswith("fedlora train-policy ")


def test_deliveries_keep_to_the_budget(small):
    clients = reports(small, 0, 0.1, 1.4, 3.5, 7.3, 20)
    for name, decision in AirLlm().allocate(1, clients, small).items():
        assert small.bits(decision.deliver) <= clients[name].budget_bits


def test_a_first_delivery_uses_what_it_spends_to_the_last_bit(small):
    clients = reports(small, 1.4)
    ranks = AirLlm(rounds=8).allocate(1, clients, small)["0"].deliver
    left = clients["0"].budget_bits - small.bits(ranks)
    assert 1.0 < small.parameters(ranks) / sum(small.unit_parameters) <= 1.4
    assert left < 0.5 * clients["0"].budget_bits


def test_a_good_adapter_is_not_replaced_while_the_channel_is_bad(small):
    strategy = AirLlm(rounds=8)
    good, bad = reports(small, 12.0), reports(small, 0.6)
    assert sum(strategy.allocate(4, good, small)["0"].deliver) > 0
    strategy.observe(4, {"0": ClientOutcome(delivered=True)})
    decision = strategy.allocate(5, bad, small)["0"]
    assert sum(decision.deliver) == 0
    assert sum(decision.train) > 0


def test_a_late_adapter_is_not_remembered_as_held(small):
    strategy = AirLlm()
    strategy.allocate(1, reports(small, 8.0), small)
    strategy.observe(1, {"0": ClientOutcome(delivered=False)})
    assert strategy.held == {}


def test_what_a_round_without_delivery_decided_is_not_remembered_as_held(small):
    strategy = AirLlm()
    strategy.allocate(1, reports(small, 8.0), small)
    strategy.observe(1, {"0": ClientOutcome(delivered=None)})
    assert strategy.held == {}
    strategy.allocate(2, {"0": ClientReport()}, small)  # nothing is ever sent
    strategy.observe(2, {"0": ClientOutcome(delivered=None)})
    assert strategy.held["0"].round == 2


def test_ranks_follow_the_channel(small):
    ranks = [
        AirLlm(rounds=8).allocate(1, reports(small, budget), small)["0"].deliver.mean
        for budget in (1.4, 3.5, 7.3, 12.2)
    ]
    assert ranks == sorted(ranks)
    assert ranks[-1] > 3 * ranks[0]


def test_all_clients_train_the_same_components_whatever_they_are_sent(small):
    decisions = AirLlm(rounds=8).allocate(1, reports(small, 0.0, 1.4, 12.2), small).values()
    assert len({decision.train for decision in decisions}) == 1
    assert len({decision.deliver for decision in decisions}) > 1


def test_without_diffusion_the_plan_is_the_draft_of_the_latent(small):
    clients = reports(small, 0.5, 1.4, 7.3)
    plain, refined = AirLlm(rounds=8, diffusion=False), AirLlm(rounds=8)
    sight = plain.look(1, clients, small)
    latents = plain.policy.latents(sight.states)
    drafted = draft(latents, plain.projections(small)).numpy().astype(float)
    expected = plain.carry_out(1, clients, small, sight, drafted)
    assert plain.allocate(1, clients, small) == expected
    # The diffusion was taught to make these, and so comes close.
    close = refined.allocate(1, clients, small)
    for name, decision in expected.items():
        assert abs(close[name].deliver.mean - decision.deliver.mean) <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diffusion": "maybe"}, "diffusion is 'maybe'; set true or false"),
        ({"use_statistics": 1}, "use_statistics is 1; set true or false"),
        ({"rounds": 0}, "rounds is 0; set a whole number from 1"),
        ({"bit_price": -0.1}, "bit_price is -0.1; set a finite number from 0 to 4"),
        ({"end_weight": 17}, "end_weight is 17; set a finite number from 0 to 16"),
        ({"end_weight": True}, "end_weight is True, a bool; set a number"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(FedloraError, match=message):
        AirLlm(**options)


def test_a_decision_depends_on_seed_round_and_client_alone(small):
    clients = reports(small, 7.3, 7.3, 7.3)
    first = AirLlm(seed=1).allocate(1, clients, small)
    assert AirLlm(seed=1).allocate(1, clients, small) == first
    strategy = AirLlm(seed=1)
    torch.manual_seed(99)
    assert strategy.allocate(1, clients, small) == first
    sight = AirLlm(seed=1).look(1, clients, small)
    again = AirLlm(seed=1).look(1, {"1": clients["1"]}, small)
    torch.testing.assert_close(again.start[0], sight.start[1])
    assert not torch.equal(AirLlm(seed=2).look(1, clients, small).start, sight.start)
    assert not torch.equal(AirLlm(seed=1).look(2, clients, small).start, sight.start)


def test_the_state_comes_back_from_a_checkpoint(small):
    strategy = AirLlm()
    strategy.allocate(1, reports(small, 3.0, 9.0), small)
    strategy.observe(1, dict.fromkeys("01", ClientOutcome(delivered=True)))
    strategy.allocate(2, reports(small, 1.0, 5.0), small)
    tree, tensors = pack_state(strategy.state_dict())
    other = AirLlm()
    other.load_state_dict(unpack_state(json.loads(json.dumps(tree)), tensors))
    assert other.state_dict() == strategy.state_dict()
    clients = reports(small, 2.0, 6.0)
    assert other.allocate(2, clients, small) == strategy.allocate(2, clients, small)


def test_what_is_not_known_is_0_beside_its_flag(small):
    channel = ChannelState(None, None, 1e6, 1e6, 1e6)
    full = ClientReport(channel, DataStatistics(8.0, 0.4, None, 20.0), budget_bits=1e6)
    bare = replace(full, statistics=None)
    look = AirLlm().look(1, {"a": full, "b": bare}, small).states.numpy()
    known = STATE_FEATURES.index("statistics_known")
    assert look[:, known].tolist() == [1.0, 0.0]
    assert np.all(look[1, known:] == 0)
    assert np.array_equal(look[0, :known], look[1, :known])
    without = AirLlm(use_statistics=False).look(1, {"a": full}, small).states.numpy()
    assert np.array_equal(without[0], look[1])


def test_features_of_projections_do_not_depend_on_the_width():
    np.testing.assert_allclose(
        projection_features(space_of(4, 64)), projection_features(space_of(4, 1024))
    )


def plan_of(space, share, *, vote=1.0):
    """Return a plan that spends a share of the budget evenly, or one for each projection."""
    return np.stack(
        np.broadcast_arrays(np.asarray(share) - 1.0, 0.0, np.full(len(space), vote)), -1
    )


def test_a_draft_of_no_sends_nothing_and_of_all_sends_the_budget(small):
    features = torch.from_numpy(projection_features(small)).float()
    latents = torch.tensor([[-1.0, 1, 0, 0, 0], [1.0, 1, 0, 0, 0], [1.0, -1, 0, 0, 0]])
    none, all_of_it, half = draft(latents, features).double().numpy()
    budget = 3.3 * small.bits(small.uniform(1))
    assert delivered_ranks(none, small, budget) == small.uniform(0)
    ranks = delivered_ranks(all_of_it, small, budget)
    units = small.bits_per_parameter * np.array(small.unit_parameters)
    assert 0 <= budget - small.bits(ranks) < units.min()
    assert set(ranks) <= {3, 4}
    assert SMALLEST_SHARE * budget - small.bits(delivered_ranks(half, small, budget)) >= 0


def test_an_undecided_vote_does_not_become_a_half_adapter(small):
    budget = 1.4 * small.bits(small.uniform(1))
    whole = delivered_ranks(plan_of(small, 1.0), small, budget)
    for vote in (-0.01, 0.01):
        ranks = delivered_ranks(plan_of(small, 1.0, vote=vote), small, budget)
        assert ranks == (whole if vote > 0 else small.uniform(0))


def test_the_diffusions_noise_neither_scatters_ranks_nor_wastes_the_budget(small):
    rng = np.random.default_rng(0)
    budget = 1.4 * small.bits(small.uniform(1))
    even = delivered_ranks(plan_of(small, 1.0), small, budget)
    for _ in range(20):
        noisy = rng.uniform(0.9, 1.1) + 0.04 * rng.standard_normal(len(small))
        assert delivered_ranks(plan_of(small, noisy), small, budget) == even


def test_a_tilt_of_a_step_moves_ranks_between_projections(small):
    share = np.where(np.arange(len(small)) < 5, 1 - TILT_STEP, 1 + TILT_STEP)
    ranks = delivered_ranks(plan_of(small, share), small, 8 * small.bits(small.uniform(1)))
    assert max(ranks[:5]) < min(ranks[5:])


def test_training_reaches_from_the_delivered_to_the_largest_rank(small):
    delivered = np.full(len(small), 3.0)
    assert trained_ranks(np.full(len(small), -1.0), delivered, 11.0, small) == small.uniform(3)
    assert trained_ranks(np.full(len(small), 1.0), delivered, 11.0, small) == small.uniform(11)
    assert trained_ranks(np.full(len(small), 1.0), delivered, 1.0, small) == small.uniform(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "is of version 0, not 2"),
        ({"state_features": ["snr"]}, "was trained on the state_features"),
        ({"projection_features": ["size"]}, "was trained on the projection_features"),
    ],
)
def test_a_policy_of_another_kind_is_refused_in_one_sentence(tmp_path, change, message):
    with safe_open(SHIPPED, "pt") as file:
        manifest = json.loads(file.metadata()["fedlora.airllm"])
    path = tmp_path / "policy.safetensors"
    save_file(load_file(SHIPPED), path, metadata={"fedlora.airllm": json.dumps(manifest | change)})
    with pytest.raises(FedloraError, match=message) as caught:
        AirLlm(policy=str(path))
    assert "\n" not in str(caught.value)


def test_a_policy_from_before_the_weights_decides_and_cannot_be_told_them(tmp_path, small):
    names = tuple(name for name in STATE_FEATURES if name not in WEIGHT_FEATURES)
    path = tmp_path / "policy.safetensors"
    Policy(Actor(len(names)), state_features=names).save(path)
    policy, clients = load_policy(path), reports(small, 1.4, 7.3)
    states = AirLlm(policy=policy).look(1, clients, small).states
    seen = states[:, [STATE_FEATURES.index(name) for name in names]]
    assert torch.equal(policy.latents(states), torch.tanh(policy.actor(seen)))
    assert set(AirLlm(policy=policy).allocate(1, clients, small)) == set(clients)
    with pytest.raises(FedloraError, match=r"bit_price is 0\.5, and this policy was"):
        AirLlm(policy=policy, bit_price=0.5)


def test_the_weights_reach_the_policy_and_a_price_sends_less(small):
    def sent(**weights):
        strategy = AirLlm(rounds=8, **weights)
        for round_ in range(1, 9):
            decisions = strategy.allocate(round_, reports(small, 3.0, 7.3, 12.0), small)
            yield sum(small.bits(decision.deliver) for decision in decisions.values())
            strategy.observe(round_, dict.fromkeys("012", ClientOutcome(delivered=True)))

    assert sum(sent(bit_price=2.0)) < 0.8 * sum(sent(bit_price=0.0))
    assert list(sent(end_weight=16.0))[-1] > 0


def test_a_file_that_is_no_policy_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(FedloraError, match="cannot read policy"):
        AirLlm(policy=str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(FedloraError, match="cannot read policy"):
        AirLlm(policy=str(path))
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FedloraError, match="is no airllm policy"):
        AirLlm(policy=str(path))


def test_a_hundred_clients_of_opt_1_3b_are_decided_at_once_and_within_their_budgets():
    shapes = [(2048, 2048)] * 4 + [(2048, 8192), (8192, 2048)]
    space = RankSpace(
        tuple(Projection(f"p{i}", layer, *s) for layer in range(24) for i, s in enumerate(shapes)),
        16,
    )
    assert len(space) == 144
    clients = reports(space, *np.linspace(0.5, 20, 100))
    decisions = AirLlm().allocate(1, clients, space)
    assert set(decisions) == set(clients)
    for name, decision in decisions.items():
        assert space.bits(decision.deliver) <= clients[name].budget_bits
