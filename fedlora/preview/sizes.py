"""What a step sends, and what a server and a device hold in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fedlora.config import End, Payload, Scenario
from fedlora.geometry import Geometry
from fedlora.link import (
    WIDTH as ENDS_WIDTH,
    RememberingCodec,
    create_codec,
    ends_rows,
    levels_bytes,
    token_bytes,
)
from fedlora.lora.targets import choose_targets, linear_modules
from fedlora.split import DTYPES, Checkpoint, edge_tensors, predicted_bytes, to_prepack
from fedlora.tasks import front_of, head_of, make_task, task_class

_CHUNK = 4 << 20  # logits at a time, see fedlora.tasks.causal_lm
_DIGEST = 4  # bytes
_ADAM_BYTES = 16  # of a parameter that trains, in fp32: itself, its gradient, two moments


@dataclass(frozen=True)
class Load:
    """What there is to send.

    Attributes
    ----------
    tokens, learnt
        Of a row on average, as it is cut: all, and those to be predicted.
    all_tokens
        Of all rows together, those held out too; 0 where that is not known.
    train_rows
        Rows to train on; 0 where that is not known.
    """

    tokens: float
    learnt: float
    all_tokens: int
    train_rows: int


@dataclass(frozen=True)
class Sizes:
    """Predicted sizes, in bytes.

    Attributes
    ----------
    up, down
        Tensors that a client sends and gets for one exchange of a step, of rows of mean length;
        with privacy a mechanism may send less.
    up_again
        What it sends where the server has kept the rows' activations (``link.reuse``).
    server_weights, server_adapters, server_activations
        What the server holds: frozen weights, adapters with gradients and moments, and about what a
        step keeps for its backward pass with all clients of a round.
    server_kept
        The activations that it keeps, once it has seen all rows, and at most what it keeps of
        blocks that nobody trains (``compute.reuse_blocks``).
    server_levels
        Levels of the representations that it has sent (``link.residual_mib``).
    device_weights, device_step
        What a device holds: its ends of the model, and about what a step takes.
    device_levels
        Its own part of ``server_levels``, of a mean device.
    """

    up: int
    down: int
    up_again: int
    server_weights: int
    server_adapters: int
    server_activations: int
    server_kept: int
    server_levels: int
    device_weights: int
    device_step: int
    device_levels: int

    @property
    def server(self) -> int:
        """All of the server's."""
        kept = self.server_activations + self.server_kept + self.server_levels
        return self.server_weights + self.server_adapters + kept

    @property
    def device(self) -> int:
        """All of a device's."""
        return self.device_weights + self.device_step + self.device_levels


def predict_sizes(scenario: Scenario, checkpoint: Checkpoint, load: Load, classes: int) -> Sizes:
    """Predict the sizes of a scenario that can be run.

    Parameters
    ----------
    scenario, checkpoint
        The scenario and its model.
    load
        What there is to send.
    classes
        Of the task; 0 for language modelling.
    """
    geometry = Geometry.of(scenario, checkpoint)
    rows = scenario.train.batch_size
    tokens = math.ceil(rows * load.tokens)
    width = DTYPES[scenario.model.dtype].itemsize
    kind = task_class(scenario.task.kind)
    language = kind.language()
    head, front = end_sizes(scenario, checkpoint, geometry, classes)
    back_rows = rows if geometry.server_pools else tokens
    vocabulary = 0  # numbers of the token embedding that the server holds
    if scenario.link.sends_tokens:
        vocabulary = geometry.embedding_width * checkpoint.size("vocab_size")
        once = token_bytes(tokens, checkpoint.size("vocab_size")) + 4 * rows
    else:
        once = _encoded(scenario, "activation", tokens, geometry.activation_width) + 4 * rows
    if geometry.targets_only(scenario):
        back_rows = math.ceil(rows * load.learnt)
        once += math.ceil(tokens / 8)  # a bit tells whether a token is learnt
    reused = scenario.link.reuse and not scenario.train.embedding
    back_width = scenario.link.r_cut or geometry.representation_width
    up = _encoded(scenario, "gradient", back_rows, back_width)
    up += 9 * rows if reused else 0  # identifier, and whether the row comes with it
    down = _encoded(scenario, "representation", back_rows, back_width)
    if scenario.train.embedding:
        down += _encoded(scenario, "gradient", tokens, geometry.activation_width)
    shared = [head] * (geometry.trains_head and scenario.head.share == "step")
    shared = [] if scenario.link.r_cut else shared
    shared += [front] * (scenario.train.embedding and scenario.front.share == "step")
    for numbers in filter(None, shared):
        up += _ends(scenario, "end_gradient", numbers)
        down += _ends(scenario, "end_weight", numbers)
    model = scenario.model
    folder, blocks = checkpoint.folder, (model.client_front, model.client_back)
    at_edge = edge_tensors(folder, *blocks, language=language, tokens=kind.tokens)
    away = edge_tensors(folder, *blocks, language=True)
    here = _numbers(checkpoint, at_edge) + front
    device = here * width + (0 if language else _ADAM_BYTES * head)
    trained = 0
    if scenario.train.embedding:
        trained = here if kind.tokens else front
    step = 4 * tokens * (2 * geometry.activation_width + 3 * geometry.representation_width)
    step += (8 + width) * _CHUNK if language else 0  # logits, a copy, and one in model.dtype
    a_row = 1.0 if geometry.server_pools else load.tokens
    a_row = load.learnt if geometry.targets_only(scenario) else a_row
    a_client = _levels(scenario, load, a_row, back_width) if reused else 0
    again = up + (_DIGEST * rows if a_client else 0)
    return Sizes(
        up + once,
        down,
        again if reused else up + once,
        (_numbers(checkpoint, checkpoint.entries.keys() - set(away)) + vocabulary) * width
        - _spared(scenario, checkpoint, geometry)
        + _again(scenario, checkpoint, geometry),
        _adapters(scenario, checkpoint, geometry) * _ADAM_BYTES,
        _activations(scenario, checkpoint, geometry, tokens),
        _kept(scenario, checkpoint, geometry, load.all_tokens) if reused else 0,
        a_client * scenario.federation.clients,
        device + trained * (_ADAM_BYTES - width),
        step,
        a_client,
    )


def _kept(scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry, tokens: int) -> int:
    """Return the bytes in memory of kept activations, and of what blocks make of them."""
    link, compute, kept = scenario.link, scenario.compute, 0
    if not link.reuse_folder:
        kept = min(4 * tokens * geometry.activation_width, link.reuse_mib << 20)
    if compute.reuse_blocks and not compute.reuse_blocks_folder:
        width = DTYPES[scenario.model.dtype].itemsize
        states = width * tokens * checkpoint.size("hidden_size", "n_embd")
        kept += min(states, compute.reuse_blocks_mib << 20)
    return kept


def _levels(scenario: Scenario, load: Load, rows: float, width: int) -> int:
    """Return the bytes of levels that both ends keep of a mean client.

    Parameters
    ----------
    scenario, load
        The run.
    rows
        That a sample has of a representation.
    width
        Of such a row.
    """
    codec = create_codec(**scenario.link.codec("representation"))
    levels = codec.remembers(width) if isinstance(codec, RememberingCodec) else 0
    if not levels:
        return 0
    clients = max(1, scenario.federation.clients)
    together = load.train_rows * levels_bytes(math.ceil(rows), levels)
    return min(together // clients, scenario.link.residual_bytes(clients))


def _encoded(scenario: Scenario, what: Payload | End, rows: int, width: int) -> int:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    parts = create_codec(**scenario.link.codec(what)).encode(x)
    return sum(part.numel() * part.element_size() for part in parts.values())


def _ends(scenario: Scenario, what: End, numbers: int) -> int:
    if scenario.link.codec(what)["name"] == "fp32":
        return 4 * numbers
    return _encoded(scenario, what, ends_rows(numbers), ENDS_WIDTH)


def end_sizes(
    scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry, classes: int
) -> tuple[int, int]:
    """Return the weights of the head, and of a front in place of the token embedding (else 0).

    Parameters
    ----------
    scenario, checkpoint, geometry
        The run.
    classes
        Of the task; 0 for language modelling.
    """
    kind, seed = task_class(scenario.task.kind), scenario.seed
    if kind.tokens:
        return geometry.head_width * (classes or checkpoint.size("vocab_size")), 0
    task = make_task(kind, scenario.task)
    head = head_of(task, checkpoint, torch.float32, geometry.head_width, seed)
    front = front_of(task, checkpoint, torch.float32, geometry.embedding_width, seed)
    return sum(p.numel() for p in head.parameters()), sum(p.numel() for p in front.parameters())


def _numbers(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(math.prod(checkpoint.entries[name].shape) for name in names)


def _adapters(scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry) -> int:
    targets = choose_targets(linear_modules(checkpoint, geometry.cut), scenario.lora.targets)
    shapes = [checkpoint.entries[f"{name}.weight"].shape for name in targets]
    return scenario.lora.r_max * sum(map(sum, shapes))


def _spared(scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry) -> int:
    """Return the bytes that matrices in few bits take less than as they are computed with."""
    form, width = scenario.model.few_bits, DTYPES[scenario.model.dtype].itemsize
    if form is None:
        return 0
    spared = 0
    for name in linear_modules(checkpoint, geometry.cut):
        d_out, d_in = checkpoint.entries[f"{name}.weight"].shape
        spared += width * d_out * d_in - predicted_bytes(d_out, d_in, form, width)
    return spared


def _again(scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry) -> int:
    """Return the bytes of matrices that are kept a second time (``compute.prepack_mib``)."""
    model, compute = scenario.model, scenario.compute
    plain = model.dtype == "fp32" and not model.few_bits and not compute.places
    if compute.device != "cpu" or not plain:
        return 0
    names = linear_modules(checkpoint, geometry.cut)
    shapes = {name: checkpoint.entries[f"{name}.weight"].shape for name in names}
    return sum(to_prepack(shapes, compute.prepack_mib << 20, trains=True).values()) // 2


def _activations(
    scenario: Scenario, checkpoint: Checkpoint, geometry: Geometry, tokens: int
) -> int:
    """Return the bytes that are kept: of each linear module what goes in and what comes out.

    In bf16 what goes into a block's two norms is kept in fp32 as well, in which they compute.
    """
    cut, width = geometry.cut, DTYPES[scenario.model.dtype].itemsize
    clients = scenario.federation.clients_per_round or scenario.federation.clients
    linear = linear_modules(checkpoint, cut)
    blocks = max(1, cut.stop - cut.start)
    token = width * sum(sum(checkpoint.entries[f"{name}.weight"].shape) for name in linear)
    token += blocks * 2 * 4 * geometry.activation_width * (width < 4)
    if scenario.compute.checkpoint:  # the input of each block, and all of one
        token = token // blocks + blocks * geometry.activation_width * width
    return clients * tokens * token
