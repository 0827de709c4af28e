"""The server's memory: flat over rounds, linear in the rows of a step."""

from __future__ import annotations

import gc

import pytest
import torch
from support.federation import Federation, scenario

from fedlora.config import Scenario, with_overrides
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint


def living_bytes() -> int:
    """Bytes of all storages that any tensor in this process holds.

    A matrix laid out beforehand has no storage to ask: its elements count, once a tensor.
    """
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor) or thing.device.type != "cpu":
            continue
        if thing.is_mkldnn:
            storages[id(thing)] = thing.nelement() * thing.element_size()
        else:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(
    "overrides",
    [["head.share=step"], ["head.share=step", "robust.average=median", "train.accumulate=2"]],
    ids=["mean", "by client"],
)
def test_no_round_leaves_tensors_behind(tiny, records, overrides):
    config = scenario(tiny["gpt2"], records, *overrides, "train.rounds=4", "train.steps=2")
    federation = Federation(config)
    after: list[int] = []
    federation.server.training.after_round = lambda: after.append(living_bytes())
    federation.run()
    assert len(after) == 4
    # a batch is longer or shorter; what a step keeps for backward is half a megabyte
    assert max(after[1:]) - min(after[1:]) < 32 << 10


def step_bytes(engine: SplitEngine, rows: int, clients: int) -> tuple[int, int]:
    """Bytes that a step keeps for backward, and bytes of gradients by client after it."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    uploads = [
        ClientRows(torch.randn(12 * rows, 32), [12] * rows, engine.full_ranks(), str(client))
        for client in range(clients)
    ]
    frozen = {p.untyped_storage().data_ptr() for p in engine.blocks.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z = engine.forward(uploads, train=True)
        engine.backward([torch.randn_like(part) for part in z], [float(rows)] * clients)
    apart, update = 0, engine.update
    if update.by_client is None:
        update.step(0)
    else:
        apart = sum(block.values.nbytes for block in update.by_client.take()[0])
        update.optimizer.zero_grad()
    return sum(size for place, size in kept.items() if place not in frozen), apart


def test_a_step_takes_memory_in_proportion_to_its_rows(checkpoints):
    engine = SplitEngine(Checkpoint(checkpoints["llama"]), Scenario())
    small, middle, large = (step_bytes(engine, rows, 3)[0] for rows in (2, 4, 8))
    assert middle > 1.5 * small
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.05)


def test_checkpointing_keeps_a_fraction_of_it(checkpoints):
    folder = Checkpoint(checkpoints["llama"])
    config = with_overrides(Scenario(), ["compute.checkpoint=true"])
    whole = step_bytes(SplitEngine(folder, Scenario()), 8, 2)[0]
    inputs = step_bytes(SplitEngine(folder, config), 8, 2)[0]
    assert inputs < whole


def test_gradients_by_client_take_one_adapter_each_whatever_the_rows(checkpoints):
    config = with_overrides(Scenario(), ["robust.average=median"])
    engine = SplitEngine(Checkpoint(checkpoints["llama"]), config)
    adapter = 4 * sum(p.A.numel() + p.B.numel() for p in engine.projections)
    assert step_bytes(engine, 1, 3)[1] == step_bytes(engine, 6, 3)[1] == 3 * adapter
    assert step_bytes(engine, 1, 7)[1] == 7 * adapter
