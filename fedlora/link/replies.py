"""What a client answers: one dataclass a reply.

On a device a reply is made part by part by ``clients.owner.Door``, which asks of each part whether
it may leave; a test holds its table to the names here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from fedlora.link import messages as m
from fedlora.link.message import Count, Flag, Group, Message, Number, Table, Tensors, Text, Whole


@dataclass(frozen=True)
class Hello(Message):
    """Opens a session.

    Attributes
    ----------
    protocol, config_digest, weights_digest, tokenizer_digest, dtype
        See ``fedlora.link.Identity``.
    token
        Of the invitation.
    rows, held_out_rows
        Records to train on, and held out.
    rho_planned, label_epsilon
        What the client will have spent of its privacy at most, where there is any.
    """

    KIND: ClassVar[str] = m.HELLO
    protocol: Whole
    config_digest: Text
    weights_digest: Text
    tokenizer_digest: Text
    dtype: Text
    token: Text
    rows: Count
    held_out_rows: Count
    rho_planned: Number | None = None
    label_epsilon: Number | None = None


@dataclass(frozen=True)
class Ready(Message):
    """Done.

    Attributes
    ----------
    channel
        What a measured link carries, after ``welcome``.
    round
        Whose state is stored or was gone back to, after ``keep`` and ``restore``; -1: not stored.
    head, front
        First weights of what is shared, after ``phase``.
    front_gradient
        Of a front that is shared every step, after ``embedding``.
    """

    KIND: ClassVar[str] = m.READY
    channel: Table | None = None
    round: Whole | None = None
    head: Annotated[Tensors, Group(m.HEAD_WEIGHT)] = field(default_factory=dict)
    front: Annotated[Tensors, Group(m.FRONT_WEIGHT)] = field(default_factory=dict)
    front_gradient: Annotated[Tensors, Group(m.FRONT_GRADIENT)] = field(default_factory=dict)


@dataclass(frozen=True)
class Report(Message):
    """What a client says of a round that begins; see ``fedlora.ranks.ClientReport``.

    Attributes
    ----------
    channel
        State of its channel.
    statistics
        Of its text; null where it tells none.
    device, budget_bits
        Null: no release tells them.
    """

    KIND: ClassVar[str] = m.REPORT
    channel: Table | None
    statistics: Table | None
    device: Table | None
    budget_bits: Number | None


@dataclass(frozen=True)
class Activation(Message):
    """A batch at the cut.

    Attributes
    ----------
    activation
        e, as the codec of ``link.activation`` writes it: tokens of all rows that are sent.
    lengths
        Tokens of each of these, int32.
    targets
        Which of these tokens are learnt, a bit each.
    ids, fresh
        Where the server keeps rows: identifier of each row of the batch (int64), and whether it is
        sent (uint8).
    held
        Where the client keeps representations: a digest (int32) of what it has of each row of the
        batch; see ``fedlora.link.levels``.
    written
        Whether the rows are texts that are being written, in an evaluation.
    """

    KIND: ClassVar[str] = m.ACTIVATION
    written: Flag | None = None
    activation: Annotated[Tensors, Group("activation")] = field(default_factory=dict)
    lengths: Annotated[Tensors, Group("lengths")] = field(default_factory=dict)
    targets: Annotated[Tensors, Group("targets")] = field(default_factory=dict)
    ids: Annotated[Tensors, Group("ids")] = field(default_factory=dict)
    fresh: Annotated[Tensors, Group("fresh")] = field(default_factory=dict)
    held: Annotated[Tensors, Group("held")] = field(default_factory=dict)


@dataclass(frozen=True)
class Gradient(Message):
    """Answer to a step.

    Attributes
    ----------
    weight
        Samples, or target tokens, of the batch.
    loss
        Their unreduced loss; missing where it does not leave.
    rho, label_epsilon, sigma, sigma_now
        What the client has spent, and its noise, where there is any.
    kept
        Which tokens' gradients are sent, a bit each, where some are left out (``link.keep``).
    gradient
        At the cut, as the codec of ``link.gradient`` writes it.
    head
        Unreduced gradient of a common head.
    activation, lengths, targets, ids, fresh, held
        The next batch, where it was asked for; see ``Activation``.
    """

    KIND: ClassVar[str] = m.GRADIENT
    weight: Number
    loss: Number | None = None
    rho: Number | None = None
    label_epsilon: Number | None = None
    sigma: Number | None = None
    sigma_now: Number | None = None
    kept: Annotated[Tensors, Group("kept")] = field(default_factory=dict)
    gradient: Annotated[Tensors, Group("gradient")] = field(default_factory=dict)
    head: Annotated[Tensors, Group(m.HEAD_GRADIENT)] = field(default_factory=dict)
    activation: Annotated[Tensors, Group("activation")] = field(default_factory=dict)
    lengths: Annotated[Tensors, Group("lengths")] = field(default_factory=dict)
    targets: Annotated[Tensors, Group("targets")] = field(default_factory=dict)
    ids: Annotated[Tensors, Group("ids")] = field(default_factory=dict)
    fresh: Annotated[Tensors, Group("fresh")] = field(default_factory=dict)
    held: Annotated[Tensors, Group("held")] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport(Message):
    """Answer to the end of a round.

    Attributes
    ----------
    samples
        That the client has trained on in the run.
    loss
        Mean of the round; missing where it does not leave.
    head, front
        Weights of what is averaged every round.
    """

    KIND: ClassVar[str] = m.ROUND_REPORT
    samples: Count
    loss: Number | None = None
    head: Annotated[Tensors, Group(m.HEAD_WEIGHT)] = field(default_factory=dict)
    front: Annotated[Tensors, Group(m.FRONT_WEIGHT)] = field(default_factory=dict)


@dataclass(frozen=True)
class Metrics(Message):
    """Counts of an evaluation.

    Attributes
    ----------
    counts
        As ``Task.read_counts`` reads them; null where they do not leave.
    scores
        Histograms of scores, where they are asked for.
    texts
        How like the held-out ones the texts are that were written; null where that does not leave.
    """

    KIND: ClassVar[str] = m.METRICS
    counts: Table | None
    scores: Table | None = None
    texts: Table | None = None


@dataclass(frozen=True)
class Result(Message):
    """Last words of a client at the end of a run; see ``Gradient`` for the fields.

    Attributes
    ----------
    samples
        That the client has trained on.
    rho, label_epsilon, sigma, sigma_now
        What it has spent.
    """

    KIND: ClassVar[str] = m.RESULT
    samples: Count
    rho: Number | None = None
    label_epsilon: Number | None = None
    sigma: Number | None = None
    sigma_now: Number | None = None


@dataclass(frozen=True)
class Leave(Message):
    """Last words of a client that will not go on; see ``fedlora.reasons``.

    Attributes
    ----------
    reason
        A kind of the closed list, in a simulation a sentence.
    record, records
        Numbers that go with some kinds.
    """

    KIND: ClassVar[str] = m.LEAVE
    reason: Text = ""
    record: Count | None = None
    records: Count | None = None
