from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from torch import nn

from fedlora.ranks import FedloraError, Projection, RankDecision, RankSpace, RankVector

SNRS_DB = (-5, 0, 5, 10, 15)


def capacity_bps(snr_db: float) -> float:
    return 100e6 * math.log2(1 + 10 ** (snr_db / 10))


def test_one_unit_of_uniform_rank_costs_what_airllm_counts(opt_1_3b, opt_125m):
    assert opt_1_3b.airllm_parameters(opt_1_3b.uniform(1)) == 884_880
    assert opt_125m.airllm_parameters(opt_125m.uniform(1)) == 165_960


def test_rank_8_costs_the_published_part_of_one_second_at_100_mhz(opt_1_3b):
    bits = 32 * opt_1_3b.airllm_parameters(opt_1_3b.uniform(8))
    costs = [round(bits / capacity_bps(snr_db), 3) for snr_db in SNRS_DB]
    assert costs == [5.715, 2.265, 1.101, 0.655, 0.451]


def test_parameters_equal_those_that_peft_makes():
    model = nn.ModuleDict({"q": nn.Linear(6, 4), "up": nn.Linear(4, 10), "down": nn.Linear(10, 6)})
    ranks = {"q": 3, "up": 1, "down": 2}
    space = RankSpace(
        tuple(Projection(n, 0, m.in_features, m.out_features) for n, m in model.items()), r_max=4
    )
    config = peft.LoraConfig(r=4, rank_pattern=ranks, target_modules=list(ranks))
    adapted = peft.inject_adapter_in_model(config, model)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert space.parameters(ranks.values()) == trainable


def test_bits_follow_the_precision(small):
    ranks = small.uniform(2)
    assert small.bits(ranks) == 32 * small.parameters(ranks)
    assert small.bits(ranks, 16) == 16 * small.parameters(ranks)
    assert replace(small, bits_per_parameter=8).bits(ranks) == 8 * small.parameters(ranks)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_whole_numbers_of_any_kind_become_ints(small, kind):
    vector = small.vector(kind([3] * len(small)))
    assert vector == small.uniform(3)
    assert all(type(rank) is int for rank in vector)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({2: 12}, "rank 12 for self_attn.v_proj of layer 0 exceeds r_max 8; lower it or set lora"),
        ({11: -1}, "rank -1 for fc2 of layer 1 is below r_min 0"),
        ({0: math.nan}, "rank nan for self_attn.q_proj of layer 0 is not a whole number"),
        ({0: 2.0}, "rank 2.0 for self_attn.q_proj of layer 0 is not a whole number"),
        ({0: None}, "rank None .* expected an int from 0 to 8"),
        ({0: "2"}, "rank '2' .* is not a whole number"),
    ],
)
def test_a_rank_that_does_not_fit_is_named_with_its_projection(small, change, message):
    ranks = list(small.uniform(1))
    for index, value in change.items():
        ranks[index] = value
    with pytest.raises(FedloraError, match=message):
        small.vector(ranks)


def test_a_vector_of_the_wrong_length_or_kind_is_refused(small):
    with pytest.raises(FedloraError, match="11 ranks were given; expected 12, one for each"):
        small.vector([1] * 11)
    with pytest.raises(FedloraError, match="the ranks are 4; expected a list"):
        small.vector(4)
    with pytest.raises(FedloraError, match="rank 9 exceeds r_max 8"):
        small.uniform(9)


def test_a_space_without_projections_or_ranks_is_refused(small):
    with pytest.raises(FedloraError, match="no projections"):
        RankSpace((), 8)
    for r_max, r_min in ((0, 0), (4, 5), (4, -1)):
        with pytest.raises(FedloraError, match=f"r_min {r_min} to r_max {r_max} are not possible"):
            RankSpace(small.projections, r_max, r_min)
    with pytest.raises(FedloraError, match="bits_per_parameter is 0"):
        replace(small, bits_per_parameter=0)
    with pytest.raises(FedloraError, match="projection q of layer 0 is 0 x 4"):
        Projection("q", 0, 0, 4)


def test_what_is_delivered_is_what_is_trained_unless_said_otherwise(small):
    train, deliver = small.uniform(8), small.uniform(2)
    assert RankDecision(train).deliver == train
    assert RankDecision(train, deliver).deliver == deliver
    assert RankDecision([1, 2]).train == (1, 2)


def test_a_decision_is_checked_in_both_vectors(small):
    good, bad = small.uniform(1), RankVector([9] * len(small))
    assert RankDecision(list(good)).checked(small) == RankDecision(good)
    for decision in (RankDecision(bad, good), RankDecision(good, bad)):
        with pytest.raises(FedloraError, match="rank 9"):
            decision.checked(small)


def test_mean_rank():
    assert RankVector([0, 1, 5]).mean == 2.0
