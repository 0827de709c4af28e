"""What crosses the cut layer at a client: smashed data up, representations down, replies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from clients.edge_model import EdgeModel
from clients.kept_tokens import keep_tokens
from clients.owner import DATA, Leaving, Private, PrivateSamples
from clients.release.base import GradientRelease
from clients.representations import Representations
from clients.sent_rows import SentRows
from fedlora.config import ENDS, PAYLOADS, Payload, Scenario
from fedlora.link import Frame, create_codec, pack
from fedlora.privacy.mechanisms import zero_sum_basis
from fedlora.tasks import IGNORED, Sample, TaskLoss

Parts = dict[str, Leaving[Any]]


class CutLayer:
    """Encodes, decodes and releases what one client exchanges.

    Parameters
    ----------
    client
        Identifier of the client.
    scenario
        Its link section names the codecs.
    model
        Frozen parts.
    release
        Decides what may leave.

    Attributes
    ----------
    sent
        Which samples' activations the server keeps.
    representations
        Reads what comes down.
    targets
        Whether the open batch comes down, and its gradient goes up, at learnt tokens alone.
    r_cut
        Numbers of a row that come down; 0 for all.
    codecs
        By what they carry: ``activation``, ``representation``, ``gradient``.
    ends
        Of weights and gradients of shared heads and fronts: ``end_weight``, ``end_gradient``.
    """

    def __init__(
        self, client: str, scenario: Scenario, model: EdgeModel, release: GradientRelease
    ) -> None:
        self.client = client
        self.model = model
        self.release = release
        self.sent = SentRows()
        self.targets = False
        self._opened: Sequence[int] | None = None
        self.r_cut, self._rest = scenario.link.r_cut, None
        if self.r_cut:
            self._rest = _rest_of_a_head(self.r_cut + 1)
        self._seed, self._privacy = scenario.seed, scenario.privacy
        self._keep = scenario.link.keep
        self._tells_targets = model.geometry.targets_only(scenario)
        link, front = scenario.link, model.front.embedding
        self.codecs = {
            payload: create_codec(**link.codec(payload), vocabulary=front) for payload in PAYLOADS
        }
        self.representations = Representations(scenario, self.codecs["representation"])
        self.ends = {end: create_codec(**scenario.link.codec(end)) for end in ENDS}

    def activation(
        self,
        samples: PrivateSamples,
        chosen: Sequence[int],
        numbers: Sequence[int],
        *,
        train: bool,
        named: bool = False,
    ) -> tuple[Private[torch.Tensor] | None, Parts]:
        """Return the activation of samples, and what leaves of it.

        Parameters
        ----------
        samples, chosen
            Where they are, and their numbers there.
        numbers
            Their numbers in the client's data, held-out samples last.
        train
            Whether the embedding trains with them.
        named
            Whether the server keeps rows: those that it has are named alone.

        Returns
        -------
        Private or None
            Of the rows that leave, shape (tokens, width); None where all are named alone.
        """
        parts: Parts = {}
        if named:
            ids, fresh = self.sent.send(numbers)
            parts = {"ids": self.release.door.public(ids), "fresh": self.release.door.public(fresh)}
            new = [place for place, own in enumerate(fresh.tolist()) if own]
            chosen, numbers = [chosen[i] for i in new], [numbers[i] for i in new]
        lengths_told = torch.tensor(samples.lengths_of(chosen), dtype=torch.int32)
        parts |= {"lengths": self.release.door.public(lengths_told)}
        if not chosen:
            return None, parts
        if self.targets:
            told = samples.take(chosen).map(_packed_targets)
            parts["targets"] = self.release.door.allowed(told, DATA)
        lengths = samples.lengths_of(chosen)
        e = samples.take(chosen).map(lambda batch: self._front(batch, lengths, train=train))
        return e, parts | self.encoded("activation", self.release.activation(e, lengths, numbers))

    def note(self, request: Frame) -> None:
        """Take in what a request says of the last activation; raises ``ProtocolError``."""
        if "kept" in request.fields:
            self.sent.note(request.fields["kept"])

    def heed(self, request: Frame) -> None:
        """Take in which rows the server of a request will send down."""
        self.targets = bool(request.fields.get("targets")) and self._tells_targets

    def names_rows(self, request: Frame) -> bool:
        """Tell whether the server of a request keeps rows, and the owner lets it."""
        return "kept" in request.fields and self.release.door.terms.retention

    def forget(self) -> None:
        """Take it that the server keeps nothing of this client."""
        self.sent.forget()
        self.representations.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what both ends keep, as a client's state holds it between two rounds."""
        return {"sent": self.sent.state_dict(), "levels": self.representations.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; states of before either was kept have none."""
        if "sent" in state:
            self.sent.load_state_dict(state["sent"])
        if "levels" in state:
            self.representations.load_state_dict(state["levels"])

    def open(self, numbers: Sequence[int] | None) -> Parts:
        """Open a batch to train on, and return what leaves of what is here of it.

        Parameters
        ----------
        numbers
            Its samples, where both ends keep what they exchange of them; None where they do not.
        """
        self._opened = numbers
        held = None if numbers is None else self.representations.held(numbers)
        return {} if held is None else {"held": self.release.door.public(held)}

    def representation(
        self, frame: Frame, samples: Sequence[Sample], *, train: bool = False
    ) -> torch.Tensor:
        """Return the representation that a request holds, 0 where none is sent.

        Parameters
        ----------
        frame
            The request.
        samples
            What it is of.
        train
            Whether they are the open batch.

        Raises
        ------
        ProtocolError
            When it is not that of these samples.
        """
        numbers = self._opened if train else None
        sizes = self.model.rows_of([sample.length for sample in samples])
        width = self.r_cut or self.model.width
        if not self.targets:
            return self.representations.read(frame.tensors, width, sizes, numbers)
        learnt = _targets(samples)
        counts = [int(own.sum()) for own in torch.split(learnt, list(sizes))]
        sent = self.representations.read(frame.tensors, width, counts, numbers)
        whole = sent.new_zeros(sum(sizes), width)
        whole[learnt] = sent
        return whole

    def head(self, own: nn.Module) -> nn.Module:
        """Return the head that follows on a representation: the client's own, or what is left.

        With ``link.r_cut`` the server has applied the common head, up to a number that is the same
        for all classes of a row; see ``fedlora.server.exchange.head_space``.
        """
        return self._rest or own

    def answered(self, gradient: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the part of a gradient that comes up: elsewhere it is 0."""
        return gradient[_targets(samples)] if self.targets else gradient

    def gradient(
        self, released: Leaving[torch.Tensor], loss: Private[TaskLoss], position: int
    ) -> Parts:
        """Return the tensors that carry a gradient up: of all tokens, or of some (``link.keep``).

        Parameters
        ----------
        released
            What may leave of it.
        loss
            What it is of.
        position
            See ``rounding_key``.
        """
        key = self.rounding_key(position)
        if self._keep == 1.0:
            return self.encoded("gradient", released, key)
        drawn = loss.map(lambda own: keep_tokens(own.gradient, self._keep, self._draw_key(key)))
        kept = self.release.door.allowed(drawn.map(lambda own: own.gradient), DATA)
        mask = self.release.door.allowed(drawn.map(lambda own: own.mask), DATA)
        return self.encoded("gradient", kept, key) | {"kept": mask}

    def encoded(
        self, name: Payload, value: Leaving[torch.Tensor], key: bytes | None = None
    ) -> Parts:
        """Return the tensors of a message that carry a value; see ``pack``."""
        codec = self.codecs[name]
        return dict(value.encode(lambda x: pack(name, x, codec, key)))

    def rounding_key(self, position: int) -> bytes:
        """Return what a gradient is rounded by at random.

        Parameters
        ----------
        position
            Of the batch in the client's samples, by which a run without noise repeats itself, also
            where it is resumed. Where noise is added the key is nobody's but this client's.
        """
        policy, seed = self._privacy, self._seed
        if policy.enabled:
            if policy.insecure_noise_seed is None:
                return os.urandom(32)
            seed = policy.insecure_noise_seed
        return hashlib.sha256(f"rounding/{seed}/{position}/{self.client}".encode()).digest()

    @staticmethod
    def _draw_key(key: bytes) -> bytes:
        """Return what tokens are drawn by, apart from what their gradients are rounded by."""
        return hashlib.sha256(b"keep/" + key).digest()

    def reply(
        self,
        kind: str,
        request: Frame,
        fields: Mapping[str, Leaving[Any]] | None = None,
        tensors: Mapping[str, Leaving[Any]] | None = None,
    ) -> Frame:
        """Return the reply to a request."""
        return self.release.door.message(kind, self.client, request.seq, fields, tensors)

    def _front(
        self, samples: Sequence[Sample], lengths: Sequence[int], *, train: bool
    ) -> torch.Tensor:
        with torch.set_grad_enabled(train):
            return self.model.embed(samples, lengths)


def _rest_of_a_head(classes: int) -> nn.Linear:
    """Return the map from zero-sum coordinates to logits, which does not train."""
    rest = nn.Linear(classes - 1, classes, bias=False)
    rest.weight.data = zero_sum_basis(classes).float()
    return rest.requires_grad_(False)


def _targets(samples: Sequence[Sample]) -> torch.Tensor:
    """Return which tokens of samples are learnt, shape (tokens,)."""
    learnt = [t != IGNORED for s in samples if isinstance(s.target, tuple) for t in s.target]
    return torch.tensor(learnt)


def _packed_targets(samples: Sequence[Sample]) -> torch.Tensor:
    """Return the same with a bit for each token, the first one highest."""
    return torch.from_numpy(np.packbits(_targets(samples).numpy()))
