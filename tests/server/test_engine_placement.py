"""Blocks in other places: the same gradients and steps, and LoRA factors that stay and train."""

from __future__ import annotations

import pytest
import torch

from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.server.compute.placement import AwayWeights
from fedlora.split import Checkpoint, Cut, Front

RANKS = {"0": 4, "1": 2, "2": 0, "3": 3, "4": 4}
DISK = ['compute.device_map={disk = "1-2"}', "compute.checkpoint=true"]
ALL_DISK = ['compute.device_map={disk = "0-3"}', "compute.checkpoint=true"]
SOME_MEMORY = ['compute.max_memory={cpu = "90KiB"}', "compute.checkpoint=true"]


def make(folder, *overrides: str, pools: bool = True) -> SplitEngine:
    kind = "classification" if pools else "causal_lm"
    defaults = [f"task.kind={kind}", "lora.r_max=4", "lora.dropout=0.2", "train.clip_norm=1.0"]
    scenario = with_overrides(Scenario(), [*defaults, *overrides])
    engine = SplitEngine(Checkpoint(folder), scenario)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for projection in engine.projections:
            projection.B.normal_(std=0.05, generator=generator)
    return engine


def step(engine: SplitEngine, folder, number: int = 0) -> list[torch.Tensor]:
    """Take one step on random rows; return what went down and the gradients of all factors."""
    checkpoint = Checkpoint(folder)
    config = engine.scenario.model
    cut = Cut.of(checkpoint, config.client_front, config.client_back)
    front = Front(checkpoint, cut, engine.dtype)
    generator = torch.Generator().manual_seed(number)
    rows = []
    for client, rank in RANKS.items():
        lengths = [5, 3 + int(client)]
        ids = torch.randint(3, 101, (sum(lengths),), generator=generator)
        ranks = [rank] * len(engine.projections)
        rows.append(ClientRows(front(ids, lengths).detach(), lengths, ranks, client))
    z = engine.forward(rows, train=True, exchange=number)
    gradients = [torch.randn(part.shape, generator=generator) for part in z]
    engine.backward(gradients, [2.0] * len(rows))
    factors = [f.grad.clone() for p in engine.projections for f in (p.A, p.B)]
    engine.update.step(number)
    return [*z, *factors]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("family", "place"),
    [
        ("gpt2", ["compute.checkpoint=true"]),
        ("gpt2", ALL_DISK),
        ("opt", DISK),
        ("llama", DISK),
        ("gemma3_text", ALL_DISK),
        ("bert", SOME_MEMORY),
    ],
)
def test_gradients_equal_the_undivided_servers_bit_for_bit(checkpoints, family, place):
    folder = checkpoints[family]
    whole, placed = make(folder), make(folder, *place)
    for number in range(2):
        assert equal(step(placed, folder, number), step(whole, folder, number))
    mine, expected = placed.adapter(), whole.adapter()
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_memory_limit_leaves_on_disk_what_does_not_fit(checkpoints):
    places = make(checkpoints["llama"], *SOME_MEMORY).placement.places
    assert set(places) == {0, 1, 2, 3}
    assert places[0] == "cpu" and places[3] == "disk"


@pytest.mark.parametrize("average", ["median", "norm_filter"])
def test_gradients_by_client_survive_checkpointing(checkpoints, average):
    folder, robust = checkpoints["qwen2"], f"robust.average={average}"
    whole, placed = make(folder, robust), make(folder, robust, *DISK)
    for number in range(2):
        assert equal(step(placed, folder, number), step(whole, folder, number))
    mine, expected = placed.adapter(), whole.adapter()
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_a_draw_of_the_noise_leaves_training_as_it_is(checkpoints):
    """Measuring what noise does takes a backward pass of its own, also through blocks on disk."""
    folder, robust = checkpoints["llama"], "robust.average=median"
    adapters = []
    for place, probes in ((["compute.checkpoint=false"], False), (DISK, True)):
        engine = make(folder, robust, *place)
        backward = engine.backward

        def noisy(gradients, weights, backward=backward, probes=probes):
            return backward(gradients, weights, [torch.ones_like(g) for g in gradients] * probes)

        engine.backward = noisy
        step(engine, folder)
        assert (engine.round_snr() is not None) == probes
        adapters.append(engine.adapter())
    assert all(torch.equal(adapters[1][name], value) for name, value in adapters[0].items())


def test_bf16_and_a_cut_in_the_middle_are_placed_too(checkpoints):
    folder = checkpoints["llama"]
    cut = ["model.client_front=1", "model.client_back=1", "model.dtype=bf16"]
    placed = ['compute.device_map={disk = "2"}', "compute.checkpoint=true"]
    whole = step(make(folder, *cut, pools=False), folder)
    assert equal(step(make(folder, *cut, *placed, pools=False), folder), whole)


def test_factors_stay_where_they_can_train_and_nothing_else_of_a_block_on_disk_does(checkpoints):
    engine = make(checkpoints["llama"], *ALL_DISK)
    for projection in engine.projections:
        for factor in (projection.A, projection.B):
            assert factor.device == engine.device
            assert factor.requires_grad
    step(engine, checkpoints["llama"])
    frozen = [
        (name, p) for name, p in engine.blocks.layers.named_parameters() if "lora_" not in name
    ]
    assert len(frozen) == 36
    assert all(p.device.type == "meta" for _, p in frozen)
    assert any(p.A.grad is None for p in engine.projections)  # spent by the step
    assert all(p.device.type == "cpu" for n, p in engine.blocks.named_parameters() if "lora_" in n)


def test_weights_that_were_brought_are_dropped_before_backward(checkpoints, monkeypatch):
    """What is alive of a block on disk, at any time, is the tensors of a few modules."""
    folder, alive = checkpoints["llama"], []
    load = AwayWeights.__getitem__

    def counted(self, name):
        tensor = load(self, name).clone()  # its own memory, so that it can be seen
        born.append(torch.UntypedStorage._weak_ref(tensor.untyped_storage()))
        alive.append(sum(not torch.UntypedStorage._expired(ref) for ref in born))
        return tensor

    born: list[int] = []
    monkeypatch.setattr(AwayWeights, "__getitem__", counted)
    step(make(folder, *ALL_DISK), folder)
    assert len(born) == 2 * 4 * 9  # forward and backward, four blocks of nine tensors
    assert max(alive) <= 9 + 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['compute.device_map={disk = "1"}'], "compute.checkpoint"),
        (['compute.device_map={disk = "x"}', "compute.checkpoint=true"], "'x'"),
        (['compute.device_map={disk = "3-1"}', "compute.checkpoint=true"], "'3-1'"),
        (['compute.device_map={disk = "0-1", cpu = "1"}', "compute.checkpoint=true"], "twice"),
        (['compute.max_memory={cpu = "1GiB"}', 'compute.device_map={cpu = "1"}'], "both"),
        (["compute.max_memory={cpu = 5}"], "20GiB"),
        (['compute.max_memory={cpu = "much"}'], "20GiB"),
    ],
)
def test_map_that_cannot_be_meant_is_refused_when_it_is_read(overrides, words):
    with pytest.raises(FedloraError, match=words):
        with_overrides(Scenario(), overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['compute.device_map={disk = "4"}', "compute.checkpoint=true"], "blocks 0 to 3"),
        (['compute.device_map={"cuda:77" = "1"}'], "cuda:77"),
        (["compute.device_map={nowhere = '1'}"], "nowhere"),
        (['compute.max_memory={cpu = "90KiB"}'], "compute.checkpoint"),
        (['compute.max_memory={"cuda:77" = "1GiB"}'], "cuda:77"),
    ],
)
def test_map_that_does_not_fit_model_or_machine_is_refused_in_one_sentence(
    checkpoints, overrides, words
):
    with pytest.raises(FedloraError, match=words) as caught:
        make(checkpoints["llama"], *overrides)
    assert "\n" not in str(caught.value)
