from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fedlora.channel.rate import Shannon
from fedlora.ranks import (
    ChannelState,
    ClientReport,
    FedloraError,
    Projection,
    RankSpace,
    check_rank_strategy,
)
from strategies.airllm_paper import (
    AirLlmPaper,
    cost,
    decode,
    encode,
    reward,
    save_weights,
    state,
    token_entropy,
)

SNRS_DB = [-5, 0, 5, 10, 15]


def opt(layers, width):
    shapes = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "out_proj": 1, "fc1": 4, "fc2": -4}
    return RankSpace(
        tuple(
            Projection(name, layer, width * max(1, -wide), width * max(1, wide))
            for layer in range(layers)
            for name, wide in shapes.items()
        ),
        r_max=8,
        r_min=1,
    )


@pytest.fixture(scope="module")
def opt_1_3b():
    return opt(24, 2048)


def test_a_unit_of_uniform_rank_of_opt_1_3b_is_884880_parameters(opt_1_3b):
    assert len(opt_1_3b) == 144
    assert opt_1_3b.airllm_parameters(opt_1_3b.uniform(1)) == 884_880
    assert opt(12, 768).airllm_parameters([1] * 72) == 165_960


@pytest.mark.parametrize(
    ("snr_db", "mbps", "expected"),
    zip(
        SNRS_DB,
        [39.64, 100.0, 205.74, 345.94, 502.78],
        [5.715, 2.265, 1.101, 0.655, 0.451],
        strict=True,
    ),
)
def test_capacity_and_cost_of_rank_8_are_the_published_ones(opt_1_3b, snr_db, mbps, expected):
    rate_bps = Shannon().rate_bps(snr_db, 100e6)
    assert rate_bps == pytest.approx(1e6 * mbps, rel=1e-4)
    assert cost(opt_1_3b, opt_1_3b.uniform(8), rate_bps, 1.0) == pytest.approx(expected, rel=1e-3)


def test_reward_is_published_on_both_sides_of_the_constraint():
    assert reward(0.7, 0.5) == pytest.approx(-0.75)
    assert reward(0.7, 1.0) == pytest.approx(-0.8)
    assert reward(0.7, 1.1) == pytest.approx(-11.11)


def test_ranks_decode_by_floor_and_reach_r_max_at_1_only():
    assert decode([-1, -0.5, 0, 0.999, 1], r_max=8).tolist() == [1, 2, 4, 7, 8]
    ranks = np.arange(1, 9)
    assert encode([1, 8], r_max=8).tolist() == [-1, 1]
    assert decode(encode(ranks, 8) + 1e-9, 8).tolist() == ranks.tolist()


def test_the_state_is_channel_text_and_all_ranks(opt_1_3b):
    values = state(0.5, 0.5, 0.9, 0.0, opt_1_3b.uniform(4), 8)
    assert values.shape == (148,)
    assert values[:4].tolist() == [0.5, 0.5, 0.9, 0.0]
    assert set(values[4:]) == {0.5}


def test_entropy_is_1_for_equal_frequencies_and_0_for_one_token():
    assert token_entropy([1, 2, 3, 4]) == pytest.approx(1.0)
    assert token_entropy([7, 7, 7]) == 0.0
    assert token_entropy([1, 1, 1, 2]) == pytest.approx(0.811278, rel=1e-5)


def test_it_passes_the_check_within_its_own_space():
    assert check_rank_strategy(AirLlmPaper(), opt(2, 64), time_limit_s=20) == []


def test_ranks_depend_on_the_snr_and_repeat(opt_1_3b):
    strategy = AirLlmPaper(seed=3)
    strategy.prepare(opt_1_3b)

    def at(snr_db):
        channel = ChannelState(snr_db, snr_db, 100e6, 1e8, 1e8)
        return strategy.allocate(1, {"0": ClientReport(channel)}, opt_1_3b)["0"]

    assert at(-5.0) == at(-5.0)
    assert at(-5.0) != at(15.0)


def test_weights_for_other_projections_are_refused_in_one_sentence(tmp_path, opt_1_3b):
    small = opt(2, 64)
    strategy = AirLlmPaper()
    strategy.prepare(small)
    save_weights(tmp_path / "p.safetensors", strategy.actor, strategy.denoiser, small)
    AirLlmPaper(policy=str(tmp_path / "p.safetensors")).prepare(small)
    with pytest.raises(
        FedloraError, match=r"is for 12 projections and r_max 8, this model has 144"
    ):
        AirLlmPaper(policy=str(tmp_path / "p.safetensors")).prepare(opt_1_3b)


def test_the_same_weights_are_the_same_bytes_and_files_of_before_are_still_read(tmp_path):
    space = opt(2, 64)
    strategy = AirLlmPaper()
    strategy.prepare(space)
    path = tmp_path / "p.safetensors"
    written = set()
    for _ in range(20):
        save_weights(path, strategy.actor, strategy.denoiser, space)
        written.add(path.read_bytes())
    assert len(written) == 1
    # releases before 0.2 wrote the header's values as metadata of the file
    save_file(load_file(path), path, {"projections": "12", "r_max": "8"})
    AirLlmPaper(policy=str(path)).prepare(space)
    save_file(load_file(path), path, {"fedlora.airllm-paper": "[]"})
    with pytest.raises(FedloraError, match="is for other projections and r_max unknown"):
        AirLlmPaper(policy=str(path)).prepare(space)
