"""One batch of clients with different ranks equals unsplit PEFT models built at those ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from support.architectures import ACCEPTED, tiny
from support.tiny_models import CAUSAL, CONFIGS
from torch import nn
from transformers import AutoModel

from fedlora.config import (
    ComputeConfig,
    LoraConfig,
    ModelConfig,
    Scenario,
    TaskConfig,
    TrainConfig,
)
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Back, Checkpoint, Cut, Front

R_MAX, ALPHA = 4, 6.0
LENGTHS = {"0": [9, 5], "1": [7], "2": [4, 8, 3]}
CLASSES = 5

pytestmark = pytest.mark.usefixtures("prepacks_small")


def tokens() -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(11)
    return {
        client: [torch.randint(3, 101, (n,), generator=generator) for n in lengths]
        for client, lengths in LENGTHS.items()
    }


def make_engine(folder, pool: str) -> SplitEngine:
    scenario = Scenario(
        lora=LoraConfig(r_max=R_MAX, alpha=ALPHA),
        task=TaskConfig(kind="classification" if pool else "causal_lm", pool=pool or "mean"),
        train=TrainConfig(embedding=True),
    )
    engine = SplitEngine(Checkpoint(folder), scenario)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # B starts at zero, where half of the gradients vanish
        for projection in engine.projections:
            projection.B.normal_(std=0.05, generator=generator)
    return engine


def mixed_ranks(engine: SplitEngine) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(2)
    size = (len(engine.projections),)
    return {c: torch.randint(0, R_MAX + 1, size, generator=generator).tolist() for c in LENGTHS}


def peft_at(folder, engine: SplitEngine, ranks: list[int]) -> tuple[nn.Module, dict[str, int]]:
    """Build the undivided base model with PEFT at these ranks, holding the engine's factors."""
    chosen = {p.name: r for p, r in zip(engine.projections, ranks, strict=True) if r > 0}
    base = AutoModel.from_pretrained(folder).eval()
    config = PeftLoraConfig(
        r=1,
        target_modules=list(chosen),
        rank_pattern=chosen,
        alpha_pattern={name: ALPHA * r / R_MAX for name, r in chosen.items()},
    )
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for projection in engine.projections:
            if r := chosen.get(projection.name, 0):
                layer = model.base_model.model.get_submodule(projection.name)
                layer.lora_A["default"].weight.copy_(projection.A[:r])
                layer.lora_B["default"].weight.copy_(projection.B[:, :r])
    return model, chosen


def unsplit_loss(model: nn.Module, head: torch.Tensor, rows, pool: str) -> torch.Tensor:
    """Unreduced loss of one client, row by row: class 1 of the pooled row, or next token."""
    total = torch.zeros(())
    for ids in rows:
        states = model(input_ids=ids[None]).last_hidden_state[0]
        if pool:
            vector = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pool]
            logits = vector @ head[:CLASSES].T
            total = total + nn.functional.cross_entropy(logits, torch.tensor(1))
        else:
            logits = states[:-1] @ head.T
            total = total + nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
    return total


def client_gradient(back, head, z, rows, pool: str) -> tuple[float, torch.Tensor]:
    z = z.clone().requires_grad_()
    if pool:
        target = torch.ones(len(rows), dtype=torch.long)
        loss = nn.functional.cross_entropy(z @ head[:CLASSES].T, target, reduction="sum")
    else:
        states = back(z, [len(r) for r in rows]).split([len(r) for r in rows])
        logits = torch.cat([s[:-1] for s in states]) @ head.T
        targets = torch.cat([r[1:] for r in rows])
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss.backward()
    return float(loss), z.grad


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.dist(a, b) <= 1e-5 * b.norm() + 1e-7)


@pytest.mark.parametrize("pool", ["mean", "last", "cls", ""], ids=lambda pool: pool or "language")
@pytest.mark.parametrize("family", CONFIGS)
def test_mixed_ranks_in_one_batch_equal_clients_run_alone_through_peft(checkpoints, family, pool):
    if (not pool and family not in CAUSAL) or (pool == "cls" and family in CAUSAL):
        pytest.skip("no such task")
    one_batch_equals_clients_alone(checkpoints[family], pool)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ACCEPTED)
def test_so_do_those_of_every_accepted_architecture(kind, tmp_path):
    causal = tiny(kind, tmp_path)
    for pool in ["mean", "last", "" if causal else "cls"]:
        one_batch_equals_clients_alone(tmp_path, pool)


def one_batch_equals_clients_alone(folder: Path, pool: str) -> None:
    checkpoint = Checkpoint(folder)
    engine = make_engine(folder, pool)
    ranks, data = mixed_ranks(engine), tokens()
    cut = Cut.of(checkpoint, 0, 0)
    front = Front(checkpoint, cut, torch.float32)
    back = Back(checkpoint, cut, torch.float32, final=not pool)
    width = engine.geometry.representation_width if pool else front.tokens.weight.shape[1]
    head = 0.3 * torch.randn(101, width, generator=torch.Generator().manual_seed(9))

    uploads = [
        ClientRows(front(torch.cat(rows), LENGTHS[c]).detach(), LENGTHS[c], ranks[c])
        for c, rows in data.items()
    ]
    z = engine.forward(uploads, train=True)
    answers = [
        client_gradient(back, head, part, rows, pool)
        for part, rows in zip(z, data.values(), strict=True)
    ]
    weights = [float(len(rows)) for rows in data.values()]
    upstream = engine.backward([g for _, g in answers], weights)

    sums = {p.name: (torch.zeros_like(p.A), torch.zeros_like(p.B)) for p in engine.projections}
    for index, (client, rows) in enumerate(data.items()):
        model, chosen = peft_at(folder, engine, ranks[client])
        embedding = model.get_input_embeddings()
        embedded = []
        embedding.register_forward_hook(
            lambda _m, _i, out, kept=embedded: (out.requires_grad_(), kept.append(out))[0]
        )
        loss = unsplit_loss(model, head, rows, pool)
        grads = torch.autograd.grad(
            loss, [*embedded, *(p for p in model.parameters() if p.requires_grad)]
        )
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        assert answers[index][0] == pytest.approx(loss.item(), rel=1e-5)
        whole = torch.cat([g[0] for g in grads[: len(embedded)]])
        assert close(upstream[index], whole)
        by_name = dict(zip(names, grads[len(embedded) :], strict=True))
        for name, r in chosen.items():
            prefix = f"base_model.model.{name}."
            sums[name][0][:r] += by_name[prefix + "lora_A.default.weight"]
            sums[name][1][:, :r] += by_name[prefix + "lora_B.default.weight"]
    for projection in engine.projections:
        assert close(projection.A.grad, sums[projection.name][0])
        assert close(projection.B.grad, sums[projection.name][1])


@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_targets_of_a_cut_model_keep_their_names_in_the_whole_model(
    checkpoints, family, front, back
):
    cut = ModelConfig(client_front=front, client_back=back)
    scenario = Scenario(model=cut, compute=ComputeConfig(prepack_mib=0))
    engine = SplitEngine(Checkpoint(checkpoints[family]), scenario)
    whole = AutoModel.from_pretrained(checkpoints[family])
    assert {p.layer for p in engine.projections} == set(range(front, 4 - back))
    for projection in engine.projections:
        original = whole.get_submodule(projection.name)
        assert torch.equal(projection.module.get_base_layer().weight, original.weight)


@pytest.mark.parametrize(
    ("family", "target"), [("gpt2", "2.attn.c_attn"), ("bert", "2.attention.self.query")]
)
def test_a_target_with_a_blocks_number_is_that_block_of_the_whole_model(
    checkpoints, family, target
):
    front, plain = ModelConfig(client_front=1), ComputeConfig(prepack_mib=0)
    scenario = Scenario(model=front, lora=LoraConfig(targets=(target,)), compute=plain)
    (projection,) = SplitEngine(Checkpoint(checkpoints[family]), scenario).projections
    assert projection.layer == 2
    whole = AutoModel.from_pretrained(checkpoints[family]).get_submodule(projection.name)
    assert torch.equal(projection.module.get_base_layer().weight, whole.weight)
