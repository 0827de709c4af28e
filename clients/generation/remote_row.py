"""One row on the server, as a device asks for it: everything leaves through the owner's door."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from clients.owner import Door, Leaving, Private
from fedlora.config import LinkConfig
from fedlora.errors import ClientLost, ProtocolError, printable
from fedlora.generation.bounds import REFUSALS, GenerationRefused, Refusal
from fedlora.geometry import Geometry
from fedlora.link import Frame, Identity, create_codec, messages as m, pack, unpack

ALLOWED = "generate-allowed"
"""Key of the node configuration by which embeddings of a prompt leave beside a limit."""

Ask = Callable[[Frame], Frame]
_SHOWN = 400


class RemoteRow:
    """A session that the server's blocks go on with.

    Parameters
    ----------
    ask
        Carries a request to the server and brings the answer.
    client
        Who asks.
    door
        The owner's.
    identity
        The client's model files.
    link
        Codecs.
    geometry
        Widths at the cut.

    Attributes
    ----------
    most_tokens
        How long the row may get.
    adapter
        Version of the adapter that it is computed with; one that is set before asks for that.
    bits_up, bits_down
        Bits of activations and representations so far.
    tokens_up
        Tokens whose activations were sent so far, those that were sent again included.
    """

    def __init__(
        self,
        ask: Ask,
        client: str,
        door: Door,
        identity: Identity,
        link: LinkConfig,
        geometry: Geometry,
    ) -> None:
        self._ask, self._client, self._door, self._identity = ask, client, door, identity
        self._up = create_codec(**link.codec("activation", tokens=False))
        self._down = create_codec(**link.codec("representation"))
        self._width = geometry.representation_width
        self._session = ""
        self._seq = 0
        self.most_tokens = 0
        self.adapter = ""
        self.bits_up = self.bits_down = self.tokens_up = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return bool(self._session)

    def open(self) -> None:
        """Open a session; of the adapter that an earlier one had, if there was one.

        Raises
        ------
        GenerationRefused
            When the server refuses it.
        """
        told = {**self._identity.to_dict(), "adapter": self.adapter}
        answer = self._exchange(m.GEN_OPEN, told, {}, m.GEN_OPENED)
        fields = answer.fields
        session, adapter, most = (
            fields.get(name) for name in ("session", "adapter", "most_tokens")
        )
        fits = isinstance(session, str) and isinstance(adapter, str) and type(most) is int
        if not fits or most < 1:  # type: ignore[operator]
            raise ProtocolError("the server's answer to gen_open lacks session, adapter or length")
        self._session, self.adapter, self.most_tokens = str(session), str(adapter), int(most or 0)

    def extend(
        self, position: int, activation: Private[torch.Tensor], last: int, *, after: int = 0
    ) -> torch.Tensor:
        """Add tokens to the row and return the representations of the last ones.

        Parameters
        ----------
        position
            Tokens that are kept of the row.
        activation
            Of the new tokens, shape (tokens, width).
        last
            How many representations to return.
        after
            Return them as they are after so many blocks, where the tokens wait; 0: after all.

        Returns
        -------
        torch.Tensor
            Shape (last, width).

        Raises
        ------
        GenerationRefused
            When the server refuses it.
        ProtocolError
            When its answer is not of the shape or type agreed on.
        FedloraError
            When the owner does not allow it; nothing has left then.
        """
        leaving = self._door.allowed(activation, ALLOWED)
        fields = {
            "session": self._session,
            "position": position,
            "tokens": len(leaving.value),
            "last": last,
        }
        parts = leaving.encode(lambda x: pack("activation", x.float(), self._up))
        if after:
            return self._states(m.GEN_EARLY, {**fields, "block": after}, parts, last)
        return self._states(m.GEN_EXTEND, fields, parts, last)

    def rest(self, last: int) -> torch.Tensor:
        """Have all tokens that wait pass the other blocks; return representations of the last ones.

        Parameters
        ----------
        last
            How many representations to return; so many tokens wait at least.

        Returns
        -------
        torch.Tensor
            Shape (last, width).

        Raises
        ------
        GenerationRefused, ProtocolError
            As ``extend`` does.
        """
        return self._states(m.GEN_REST, {"session": self._session, "last": last}, {}, last)

    def close(self) -> None:
        """Close the session, if one is open; one that is gone is closed already."""
        if self._session:
            with contextlib.suppress(GenerationRefused, ClientLost):
                self._exchange(m.GEN_CLOSE, {"session": self._session}, {}, m.GEN_CLOSED)
            self._session = ""

    def _states(
        self,
        kind: str,
        fields: Mapping[str, Any],
        parts: Mapping[str, Leaving[torch.Tensor]],
        last: int,
    ) -> torch.Tensor:
        answer = self._exchange(kind, fields, parts, m.GEN_STATES)
        self.bits_down += answer.bits("representation")
        return unpack(answer.tensors, "representation", self._down, (last, self._width))

    def _exchange(
        self,
        kind: str,
        fields: Mapping[str, Any],
        tensors: Mapping[str, Leaving[torch.Tensor]],
        expected: str,
    ) -> Frame:
        own = {name: self._door.public(value) for name, value in fields.items()}
        request = self._door.message(kind, self._client, self._seq, own, tensors)
        self._seq += 1
        self.bits_up += request.bits("activation")  # before it leaves, which may be all it does
        self.tokens_up += request.fields.get("tokens", 0)
        answer = self._ask(request)
        if (answer.client, answer.seq) != (request.client, request.seq):
            raise ProtocolError(
                f"the server answered request {answer.seq} of {answer.client!r:.40}, not "
                f"{request.seq} of {request.client!r:.40}"
            )
        if answer.kind == m.GEN_REFUSED:
            refusal = answer.fields.get("refusal")
            sentence = printable(str(answer.fields.get("reason", "")), _SHOWN)
            known: Refusal = refusal if refusal in REFUSALS else "failed"  # type: ignore[assignment]
            raise GenerationRefused(known, sentence or REFUSALS[known])
        if answer.kind != expected:
            raise ProtocolError(f"the server answered {kind} with {answer.kind!r:.40}")
        return answer
