"""What the server asks: one dataclass a request; ``docs/protocol.md`` tells when each is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fedlora.link import messages as m
from fedlora.link.message import Count, Flag, Group, Message, Number, Tensors, Text


@dataclass(frozen=True)
class Welcome(Message):
    """Answers ``hello``: ``ready``.

    Attributes
    ----------
    rounds, steps
        Of the run, and of a round.
    resume
        Secret by which the session is taken up again on another stream.
    """

    KIND: ClassVar[str] = m.WELCOME
    rounds: Count
    steps: Count
    resume: Text


@dataclass(frozen=True)
class Phase(Message):
    """Start anew: ``ready`` brings the first weights of what clients share.

    Attributes
    ----------
    name
        ``baseline`` or ``train``.
    """

    KIND: ClassVar[str] = m.PHASE
    name: Text = ""


@dataclass(frozen=True)
class Round(Message):
    """A round begins: ``report``.

    Attributes
    ----------
    round
        Its number, from 1.
    """

    KIND: ClassVar[str] = m.ROUND
    round: Count


@dataclass(frozen=True)
class Batch(Message):
    """The first batch, or the next one after a step that did not ask for it: ``activation``.

    Attributes
    ----------
    targets
        Whether only learnt tokens are to come down and go up.
    kept
        How many new rows of the last activation the server has kept; missing where it keeps none.
    front
        Weights of a front that all clients share.
    """

    KIND: ClassVar[str] = m.BATCH
    targets: Flag | None = None
    kept: Count | None = None
    front: Annotated[Tensors, Group(m.FRONT_WEIGHT)] = field(default_factory=dict)


@dataclass(frozen=True)
class Step(Message):
    """The representation of the open batch: ``gradient``, and the next activation if asked.

    Attributes
    ----------
    step
        Number of the optimiser step in the run, from 0.
    update
        Whether it is the last batch of the step.
    gradient
        Whether the gradient at the cut is wanted.
    next
        Whether the next activation is.
    rank
        Mean rank of the client, where it spreads its privacy budget by that.
    targets, kept
        See ``Batch``.
    representation
        z of the batch, as the codec of ``link.representation`` writes it.
    head
        Common weights of the head.
    """

    KIND: ClassVar[str] = m.STEP
    step: Count
    update: Flag = True
    gradient: Flag = True
    next: Flag = False
    rank: Number | None = None
    targets: Flag | None = None
    kept: Count | None = None
    representation: Annotated[Tensors, Group("representation")] = field(default_factory=dict)
    head: Annotated[Tensors, Group(m.HEAD_WEIGHT)] = field(default_factory=dict)


@dataclass(frozen=True)
class Again(Message):
    """Rows that the server has lost: ``activation``.

    Attributes
    ----------
    kept
        See ``Batch``.
    ids
        Their identifiers, int64.
    """

    KIND: ClassVar[str] = m.AGAIN
    kept: Count | None = None
    ids: Annotated[Tensors, Group("ids")] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedding(Message):
    """dL/de of the open batch, where the front trains: ``activation`` or ``ready``.

    Attributes
    ----------
    step, update, next, targets, kept
        See ``Step``.
    embedding
        dL/de, as the codec of ``link.gradient`` writes it.
    """

    KIND: ClassVar[str] = m.EMBEDDING
    step: Count
    update: Flag = True
    next: Flag = False
    targets: Flag | None = None
    kept: Count | None = None
    embedding: Annotated[Tensors, Group("embedding")] = field(default_factory=dict)


@dataclass(frozen=True)
class Head(Message):
    """Common weights to adopt: ``ready``.

    Attributes
    ----------
    head, front
        Of the head and of the front.
    """

    KIND: ClassVar[str] = m.HEAD
    head: Annotated[Tensors, Group(m.HEAD_WEIGHT)] = field(default_factory=dict)
    front: Annotated[Tensors, Group(m.FRONT_WEIGHT)] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundEnd(Message):
    """A round has ended: ``round_report``.

    Attributes
    ----------
    weights
        Whether the weights of what is averaged every round are wanted.
    """

    KIND: ClassVar[str] = m.ROUND_END
    weights: Flag = False


@dataclass(frozen=True)
class EvalBegin(Message):
    """Evaluate held-out rows: ``activation``, or ``metrics`` where there are none.

    Attributes
    ----------
    rows
        The most of one activation.
    texts
        Whether texts are to be written behind some of the rows.
    targets, kept
        See ``Batch``.
    """

    KIND: ClassVar[str] = m.EVAL_BEGIN
    rows: Count
    texts: Flag | None = None
    targets: Flag | None = None
    kept: Count | None = None


@dataclass(frozen=True)
class Eval(Message):
    """The representation of held-out rows: the next ``activation``, or ``metrics``.

    Attributes
    ----------
    targets, kept
        See ``Batch``.
    representation
        z of the rows.
    """

    KIND: ClassVar[str] = m.EVAL
    targets: Flag | None = None
    kept: Count | None = None
    representation: Annotated[Tensors, Group("representation")] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep(Message):
    """Store your state: ``ready`` with the round, or -1.

    Attributes
    ----------
    round
        The round that has ended.
    """

    KIND: ClassVar[str] = m.KEEP
    round: Count


@dataclass(frozen=True)
class Restore(Message):
    """Go back: ``ready`` with the round whose state was there, 0 for none.

    Attributes
    ----------
    round
        The round to go back to.
    rows
        Whether the server knows the rows that it had kept.
    """

    KIND: ClassVar[str] = m.RESTORE
    round: Count
    rows: Flag | None = None


@dataclass(frozen=True)
class End(Message):
    """The run has ended: ``result``."""

    KIND: ClassVar[str] = m.END
