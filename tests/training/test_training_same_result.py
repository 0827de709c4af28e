"""The final adapter, bit for bit, does not depend on workers, hosts, links or the time of day."""

from __future__ import annotations

import pytest
import torch
from support.federation import Federation, same, scenario
from support.stream_federation import run_over_stream

from fedlora.server.compute import lanes

VARIANTS = {
    "classification": ["head.share=step", "evaluate.baseline=true", "train.clip_norm=0.5"],
    "language": ["task.kind=causal_lm", "link.gradient=int8", "link.activation=bf16"],
    "what is left": ["task.kind=causal_lm", "link.representation=entropy", "train.rounds=4"],
    "dropout": ["lora.dropout=0.2", "head.share=round"],
    "mixed ranks": [
        "ranks.strategy=support.rank_cycles:RankCycles",
        "ranks.options.cycles=[[1],[0,3],[2]]",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapter_is_the_same_for_workers_hosts_and_links(tiny, records, variant):
    config = scenario(tiny["gpt2"], records, "federation.clients=4", *VARIANTS[variant])
    first = Federation(config).run().server.engine.adapter()
    torch.rand(5)  # what else the process draws must not matter
    assert same(Federation(config, workers=2).run().server.engine.adapter(), first)
    assert same(run_over_stream(config, hosts=1), first)
    assert same(run_over_stream(config, hosts=2), first)


def test_nor_does_it_where_rows_pass_in_lanes(tiny, records, monkeypatch):
    monkeypatch.setattr(lanes, "LEAST_NUMBERS", 0)
    config = scenario(
        tiny["gpt2"], records, "task.kind=causal_lm", "federation.clients=4", "compute.threads=2"
    )
    try:
        first = Federation(config).run()
        assert first.server.engine.prefix.lanes._threads == 1
        adapter = first.server.engine.adapter()
        assert same(Federation(config, workers=2).run().server.engine.adapter(), adapter)
        assert same(run_over_stream(config, hosts=2), adapter)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("variant", ["classification", "dropout"])
def test_another_seed_gives_another_adapter(tiny, records, variant):
    config = scenario(tiny["gpt2"], records, *VARIANTS[variant])
    other = scenario(tiny["gpt2"], records, *VARIANTS[variant], "seed=1")
    adapter = Federation(config).run().server.engine.adapter()
    assert not same(Federation(other).run().server.engine.adapter(), adapter)
