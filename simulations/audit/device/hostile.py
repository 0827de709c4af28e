"""A server that asks a device for anything: scenarios, fields and tensors drawn at random."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.link import (
    Frame,
    KeptLevels,
    RememberingCodec,
    create_codec,
    decode_frame,
    messages as m,
    pack,
    pack_beside,
)
from fedlora.privacy.mechanisms import SHIPPED

_CLASSES = ("neg", "pos", "odd")
_RUNS = ("0" * 16, "0" * 16, "1" * 16)
MODEL = "package:simulations/quickstart/decoder"
_WIDTH = 128
_ODD_VALUES: Sequence[Any] = (
    0, 1, 2, 3, -1, 10**9, 0.5, -2.5, 1e30, True, False, None, "", "x", "0", [], [1], {}, {"a": 1},
)  # fmt: skip
_MAX_FRAME_BYTES = 1 << 26
_NEAR = (
    *("model.client_front=0", "model.client_front=1", "model.client_front=2", "model.dtype=bf16"),
    *("seed=2", "task.pool=mean", "link.activation=int8", "evaluate.batch_size=2"),
)


class HostileServer:
    """Draws what a server may send; the same seed draws the same.

    Parameters
    ----------
    seed
        Of everything that is drawn.
    epsilon
        The owner's limit, which scenarios stay within now and then.
    hides_text
        Whether every scenario has noise on activations.
    """

    def __init__(self, seed: int, epsilon: float, *, hides_text: bool = False) -> None:
        self._rng = random.Random(seed)
        self._of_rows = random.Random(seed + 1)  # what is drawn of rows that are kept
        self._torch = torch.Generator().manual_seed(seed)
        self._epsilon = epsilon
        self._hides_text = hides_text

    def crash(self) -> int:
        """Return at which write of a session the device dies; 0 for none."""
        return self._rng.choice((0, 0, 0, self._rng.randint(1, 12)))

    def scenario(self) -> Scenario:
        """Draw a scenario, most of them such as a device may take part in."""
        for _ in range(100):
            try:
                return with_overrides(Scenario(), self._overrides())
            except FedloraError:
                continue
        return Scenario()

    def near(self, scenario: Scenario) -> Scenario:
        """Return one that differs from another in a thing that neither charge nor label is about.

        What a device keeps between sessions, such as noise that it repeats, has to be known by it.
        """
        for change in self._of_rows.sample(_NEAR, len(_NEAR)):
            try:
                return with_overrides(scenario, [change])
            except FedloraError:
                continue
        return scenario

    def _overrides(self) -> list[str]:
        pick = self._rng.choice
        release = pick(tuple(SHIPPED))
        share = pick(("step", "step", "personal", "round"))
        kind = SHIPPED[release]
        if kind.needs_head or (share == "round" and kind.noises_gradients):
            share = pick((*["step"] * 9, share))
        labels = list(_CLASSES[: pick((2, 2, 2, 3))])
        if self._rng.random() < 0.2:
            labels = pick((["neg", "odd"], ["pos", "odd"], ["odd", "even"], ["neg"], []))
        self._rng.shuffle(labels)
        epsilon = self._epsilon * pick((1.0, 0.5, 0.25, 0.125, 0.125, 8.0))
        chosen = [
            f"model.path={MODEL}",
            f"task.labels={labels!r}".replace("'", '"'),
            "task.max_length=24",
            f"privacy.release={release}",
            f"privacy.epsilon={epsilon}",
            f"head.share={share}",
            f"train.rounds={pick((1, 2))}",
            f"train.steps={pick((1, 2, 3))}",
            f"train.batch_size={pick((1, 4, 8, 20))}",
            f"evaluate.report={pick(('true', 'true', 'false'))}",
            f"evaluate.batch_size={pick((1, 3, 32))}",
            f"evaluate.baseline={str(kind.repeats and kind.noises_gradients).lower()}",
            f"seed={pick((0, 1))}",
        ]
        rare = {
            "privacy.epsilon=none": 0.04,
            # so that what a head has learnt shows beyond the grid of the noise
            "train.head_lr=100.0": 0.3,
            "privacy.activation_sigma=3.0": 0.2,
            "privacy.unit=token": 0.05,
            "privacy.uploads=3": 0.2,
            "privacy.spread=channel": 0.1,
            "privacy.tight=true": 0.1,
            "privacy.insecure_noise_seed=1": 0.03,
            "privacy.uplink=analog": 0.03,
            "task.kind=causal_lm": 0.12,
            "task.pool=mean": 0.2,
            "train.embedding=true": 0.05,
            "model.client_front=1": 0.08,
            "model.client_back=1": 0.08,
            "link.gradient=bf16": 0.1,
            "link.activation=int8": 0.1,
            "ranks.statistics=true": 0.2,
            "data.holdout=0.5": 0.2,
            "data.max_rows=1": 0.1,
            'data.text="label"': 0.1,
            'data.label="text"': 0.1,
            'data.train="package:simulations/quickstart/requests.csv"': 0.1,
            "task.kind=module:Class": 0.02,
            "python_path=/srv": 0.1,
            "channel.model=rayleigh": 0.2,
            "head.train=no": 0.05,
        }
        chosen += [key for key, chance in rare.items() if self._rng.random() < chance]
        if self._of_rows.random() < 0.5:
            chosen.append("link.representation=entropy")
        if self._hides_text:
            chosen = [key for key in chosen if key != "privacy.epsilon=none"]
            chosen.append(f"privacy.activation_sigma={pick((3.0, 12.0))}")
        return chosen

    def invitation(self, scenario: Scenario) -> dict[str, Any]:
        """Draw a session message."""
        record: dict[str, Any] = {
            "scenario": scenario_to_toml(scenario),
            "address": "127.0.0.1:1",
            "certificate": b"",
            "token": "token",
            "client": 0,
            "clients": 3,
            "host": self._rng.choice(("", "", "host")),
            "run": self._rng.choice(_RUNS),
            "keep": "/srv/theirs",
            "ledgers": "/srv/theirs",
        }
        if self._rng.random() < 0.06:
            name = self._rng.choice(list(record))
            record[name] = self._rng.choice((*_ODD_VALUES, b"x", "[task]\nlabels = 1"))
            if self._rng.random() < 0.2:
                del record[name]
        return record

    def serve(
        self, scenario: Scenario, sent: Callable[[Frame], bytes | None], messages: int
    ) -> None:
        """Send a device requests: now and then in the order of a run, now and then in none."""
        view = _View(scenario, keeps=self._of_rows.random() < 0.6)
        order = _in_order(scenario) if self._rng.random() < 0.7 else _fetching()
        for number in range(1, messages + 1):
            kind = next(order)
            if self._rng.random() < 0.25:
                kind = self._rng.choice((*_KINDS, m.GRADIENT, m.LEAVE, "probe", "", "x" * 50))
            elif view.lengths and self._of_rows.random() < 0.05:
                kind = m.AGAIN
            fields = self._fields(kind) | self._kept(kind, view)
            data = sent(Frame(kind, "0", number, fields, self._tensors(kind, view)))
            if data is None:
                return
            view.note(kind, decode_frame(data, _MAX_FRAME_BYTES))

    def _kept(self, kind: str, view: _View) -> dict[str, Any]:
        """Draw how many of the last rows are kept, mostly such a number as it can be."""
        if not view.keeps or kind not in (m.BATCH, m.STEP, m.EVAL_BEGIN, m.EVAL, m.AGAIN):
            return {}
        if self._of_rows.random() < 0.03:
            return {"kept": self._of_rows.choice(_ODD_VALUES)}
        return {"kept": self._of_rows.choice((0, view.fresh, view.fresh, view.fresh // 2))}

    def _fields(self, kind: str) -> dict[str, Any]:
        pick = self._rng.choice
        known: dict[str, dict[str, Any]] = {
            m.ROUND: {"round": pick((1, 2))},
            m.STEP: {
                "step": pick((0, 1)),
                "gradient": pick((True, True, False)),
                "update": pick((True, True, False)),
                "next": pick((True, True, False)),
                "rank": pick((0, 4.0, 8, 1e9)),
            },
            m.EMBEDDING: {"step": 0, "update": True, "next": True},
            m.ROUND_END: {"weights": pick((True, False))},
            m.EVAL_BEGIN: {"rows": pick((1, 3, 32, 10**9))},
            m.KEEP: {"round": pick((1, 2))},
            m.RESTORE: {"round": pick((1, 2))},
        }
        fields = known.get(kind, {})
        if self._rng.random() < 0.1 and fields:
            fields[pick(list(fields))] = pick(_ODD_VALUES)
        if self._rng.random() < 0.1:
            fields[pick(("sigma", "privacy", "counts", "labels", "host"))] = pick(_ODD_VALUES)
        return fields

    def _tensors(self, kind: str, view: _View) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        if kind in (m.STEP, m.EVAL):
            rows = view.rows if self._rng.random() > 0.05 else self._rng.randint(0, 9)
            z = self._matrix(rows, _WIDTH)
            tensors |= self._representation(z, view, train=kind == m.STEP)
        if kind == m.AGAIN:
            known = sorted(view.lengths)
            asked = self._of_rows.sample(known, min(len(known), self._of_rows.randint(1, 4)))
            tensors["ids"] = torch.tensor(asked, dtype=torch.int64)
        if kind == m.EMBEDDING:
            z = self._matrix(view.tokens, _WIDTH)
            tensors |= pack("embedding", z, create_codec(**view.scenario.link.codec("gradient")))
        if view.head is not None and (kind == m.HEAD or self._rng.random() < 0.3):
            tensors[view.head[0]] = self._matrix(*view.head[1])
        if self._rng.random() < 0.05:
            name = self._rng.choice(("head_weight.weight", "head_weight.bias", "gradient", "x"))
            tensors[name] = self._matrix(self._rng.randint(0, 4), 3)
        return tensors

    def _representation(
        self, z: torch.Tensor, view: _View, *, train: bool
    ) -> dict[str, torch.Tensor]:
        """Write a representation: whole, or as what is left of what was sent of its samples."""
        codec = create_codec(**view.scenario.link.codec("representation"))
        fits = train and view.ids and len(z) == sum(view.sizes)
        if not (fits and isinstance(codec, RememberingCodec)):
            return pack("representation", z, codec)
        told = view.held if view.held is not None else torch.zeros(len(view.ids), dtype=torch.int32)
        believed = None if self._of_rows.random() < 0.1 else told
        known = view.levels.find(view.ids, view.sizes, codec.remembers(_WIDTH), believed)
        tensors, sent = pack_beside("representation", z, codec, known)
        view.levels.keep(view.ids, view.sizes, sent)
        return tensors

    def _matrix(self, rows: int, width: int) -> torch.Tensor:
        scale = self._rng.choice((0.0, 1.0, 1.0, 50.0, 1e20, 3e38))
        x = torch.randn(rows, width, generator=self._torch)
        if self._rng.random() < 0.2:  # one row apart, as an attack on one record has it
            x[1:] = 0.0
        if self._rng.random() < 0.03 and rows:
            x[0, 0] = float("nan")
        return (x * scale).clamp(-3.4e38, 3.4e38)


_KINDS = (
    *(m.WELCOME, m.PHASE, m.ROUND, m.BATCH, m.STEP, m.EMBEDDING, m.HEAD, m.ROUND_END),
    *(m.EVAL_BEGIN, m.EVAL, m.KEEP, m.RESTORE, m.END),
)


@dataclasses.dataclass
class _View:
    """What the server has seen of a session.

    Attributes
    ----------
    scenario, keeps
        The run's, and whether rows are said to be kept.
    rows, tokens
        Of the last activation.
    head
        Name and shape of a head's weight.
    ids, sizes, held
        Names of the samples of the batch that was sent to train on, how many rows each has of a
        representation, and what is said to be there of them.
    fresh
        Rows that the last answer sent anew.
    lengths, levels
        What is known of samples by their names.
    """

    scenario: Scenario
    keeps: bool
    rows: int = 1
    tokens: int = 1
    head: tuple[str, tuple[int, int]] | None = None
    ids: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    held: torch.Tensor | None = None
    fresh: int = 0
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)
    levels: KeptLevels = dataclasses.field(default_factory=lambda: KeptLevels(1 << 24))

    def note(self, asked: str, reply: Frame) -> None:
        lengths, ids, tokens = reply.tensors.get("lengths"), list[int](), list[int]()
        self.fresh = 0
        if lengths is not None:
            tokens = lengths.tolist()
            if "ids" in reply.tensors:
                ids, new = (reply.tensors[name].tolist() for name in ("ids", "fresh"))
                self.fresh = sum(new)
                named = [own for own, one in zip(ids, new, strict=True) if one]
                self.lengths |= dict(zip(named, tokens, strict=True))
                tokens = [self.lengths.get(own, 1) for own in ids]
        if tokens and asked != m.AGAIN:
            pooled = self.scenario.task.kind == "classification"
            whole = pooled and not self.scenario.model.client_back
            self.tokens = sum(tokens)
            self.rows = len(tokens) if whole else self.tokens
            if asked in (m.BATCH, m.STEP, m.EMBEDDING):
                self.ids, self.sizes = ids, [1] * len(ids) if whole else tokens
                self.held = reply.tensors.get("held")
        for name, tensor in reply.tensors.items():
            if name.startswith(m.HEAD_WEIGHT) and tensor.dim() == 2:
                self.head = (name, (int(tensor.shape[0]), int(tensor.shape[1])))


def _fetching() -> Iterator[str]:
    """Ask for what an earlier session has kept, before this one has learnt anything."""
    yield from (m.WELCOME, m.PHASE, m.RESTORE, m.ROUND, m.ROUND_END, m.HEAD, m.ROUND_END)
    while True:
        yield from (m.RESTORE, m.BATCH, m.STEP, m.STEP, m.ROUND_END)


def _in_order(scenario: Scenario) -> Iterator[str]:
    yield m.WELCOME
    for phase in ("baseline", "train"):
        del phase
        yield m.PHASE
        for round_ in range(scenario.train.rounds):
            del round_
            yield from (m.ROUND, m.BATCH)
            yield from [m.STEP] * scenario.train.steps
            yield from (m.ROUND_END, m.HEAD, m.EVAL_BEGIN, *[m.EVAL] * 4, m.KEEP)
        yield m.RESTORE
    yield m.END
    while True:
        yield m.BATCH
        yield m.STEP
