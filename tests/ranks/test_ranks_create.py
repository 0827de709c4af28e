from __future__ import annotations

import pytest

from fedlora.config import RanksConfig
from fedlora.ranks import FedloraError, RankStrategy, create_strategy
from strategies.greedy import Greedy
from strategies.random_ranks import RandomRanks

STRANGER = """
from fedlora.ranks import RankStrategy

class Mine(RankStrategy):
    def __init__(self, seed, scale=1.0, **rest):
        self.seed, self.scale, self.rest = seed, scale, rest
    def allocate(self, round, clients, space):
        return {}

class Unfinished(RankStrategy):
    pass

class Needs(Mine):
    def __init__(self, path):
        self.path = path

class Breaks(Mine):
    def __init__(self):
        raise ValueError("no\\nweights")

def function():
    return 1
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    (tmp_path / "stranger_ranks.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    return "stranger_ranks"


def test_options_become_keyword_arguments():
    strategy = create_strategy(RanksConfig("strategies.greedy:Greedy", {"fraction": 0.5}), seed=3)
    assert isinstance(strategy, Greedy)
    assert strategy.fraction == 0.5


def test_the_seed_is_passed_where_it_is_taken_and_an_option_overrides_it():
    name = "strategies.random_ranks:RandomRanks"
    made = create_strategy(RanksConfig(name), seed=3)
    assert isinstance(made, RandomRanks)
    assert made.seed == 3
    assert create_strategy(RanksConfig(name, {"seed": 9}), seed=3).seed == 9


def test_a_strangers_class_is_made_with_any_option_it_takes(stranger):
    config = RanksConfig(f"{stranger}:Mine", {"scale": 2.0, "depth": 3})
    strategy = create_strategy(config, seed=5)
    assert isinstance(strategy, RankStrategy)
    assert (strategy.seed, strategy.scale, strategy.rest) == (5, 2.0, {"depth": 3})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("strategies.greedy:Greedy", {"part": 1}, "no option 'part'; known options: fraction, tr"),
        (
            "strategies.greedy:Greedy",
            {"fraction": 2.0},
            "ranks.options.fraction is 2.0; set a finite number from 0 to 1",
        ),
        ("stranger_ranks:Unfinished", {}, "lacks allocate; write these methods"),
        ("stranger_ranks:Needs", {}, "ranks.options is missing a required option 'path'"),
        ("stranger_ranks:Breaks", {}, "made .ValueError at stranger.*: no weights.; mend"),
        (
            "strategies.random_ranks:RandomRanks",
            {"seed": -1},
            "seed is -1; set a whole number",
        ),
        ("strategies.bandit:Bandit", {"seed": 0.5}, "seed is 0.5; set a whole number"),
        ("strategies.airllm.strategy:AirLlm", {"seed": -1}, "seed is -1; set a whole number"),
        ("stranger_ranks:function", {}, "name a class that inherits from"),
        ("stranger_ranks:Nobody", {}, "has no 'Nobody'"),
        ("no_such_module:Mine", {}, "cannot import 'no_such_module'"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_refused_in_one_sentence(
    stranger, name, options, message
):
    with pytest.raises(FedloraError, match=message):
        create_strategy(RanksConfig(name, options), seed=0)
