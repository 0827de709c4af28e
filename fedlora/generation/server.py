"""What clients ask of generation, frame by frame: checked, computed, answered or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError, shown
from fedlora.generation.bounds import CacheBounds, GenerationRefused, field_of
from fedlora.generation.engine import GenerationEngine
from fedlora.generation.scheduler import Scheduler
from fedlora.generation.sessions import Sessions
from fedlora.link import (
    Frame,
    Identity,
    check_identity,
    create_codec,
    decode_frame,
    encode_frame,
    messages as m,
    pack,
    unpack,
)

log = logging.getLogger("fedlora.generation")

_FIELDS: Mapping[str, frozenset[str]] = {
    m.GEN_OPEN: frozenset(
        ("protocol", "config_digest", "weights_digest", "tokenizer_digest", "dtype", "adapter")
    ),
    m.GEN_EXTEND: frozenset(("session", "position", "tokens", "last")),
    m.GEN_EARLY: frozenset(("session", "position", "tokens", "last", "block")),
    m.GEN_REST: frozenset(("session", "last")),
    m.GEN_CLOSE: frozenset(("session",)),
}
_WITH_ACTIVATION = (m.GEN_EXTEND, m.GEN_EARLY)
_MOST_TOKENS = 1 << 20
_MOST_BYTES = 1 << 30


class GenerationServer:
    """Answers the requests of all clients; may be called from as many threads as there are.

    Parameters
    ----------
    engine
        The blocks, with an adapter.
    scenario
        The run's, for its codecs.
    identity
        What a client's model files must be.
    ranks
        Rank vector of each client that may ask; of others, ``default``.
    default
        Rank vector of clients that are not named; None refuses them.
    bounds
        How much all may hold.
    chunk_tokens
        See ``Scheduler``.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        scenario: Scenario,
        identity: Identity,
        *,
        ranks: Mapping[str, Sequence[int]] | None = None,
        default: Sequence[int] | None = None,
        bounds: CacheBounds | None = None,
        chunk_tokens: int = 128,
    ) -> None:
        self.engine = engine
        self.sessions = Sessions(bounds or CacheBounds(), new_row=engine.new_row)
        self.scheduler = Scheduler(engine, chunk_tokens)
        self._identity = identity
        self._ranks = {c: engine.checked_ranks(own) for c, own in (ranks or {}).items()}
        self._default = None if default is None else engine.checked_ranks(default)
        self._up = create_codec(**scenario.link.codec("activation", tokens=False))
        self._down = create_codec(**scenario.link.codec("representation"))

    def handle(self, request: Frame, *, here: bool = False) -> Frame:
        """Return the answer to a request.

        Parameters
        ----------
        request
            From a client whose name the transport vouches for.
        here
            See ``Scheduler.submit``.
        """
        try:
            self._check(request)
            if request.kind == m.GEN_OPEN:
                return self._open(request)
            if request.kind == m.GEN_CLOSE:
                self.sessions.close(request.fields["session"], request.client)
                return Frame(m.GEN_CLOSED, request.client, request.seq)
            if request.kind == m.GEN_REST:
                return self._rest(request, here=here)
            if request.kind == m.GEN_EARLY:
                self._check_leaves(field_of(request.fields, "block", 1, _MOST_TOKENS))
            return self._extend(request, here=here)
        except GenerationRefused as error:
            refusal, sentence = error.refusal, str(error)
        except FedloraError as error:
            refusal, sentence = "wrong", str(error)
        except Exception:  # whatever it is, it is this request's alone
            log.exception("a request of client %s failed", shown(request.client))
            refusal, sentence = "failed", "the server failed on the request; its log says why"
        log.info("client %s is refused (%s): %s", shown(request.client), refusal, sentence)
        fields = {"refusal": refusal, "reason": sentence}
        return Frame(m.GEN_REFUSED, request.client, request.seq, fields)

    def carry(self, request: Frame) -> Frame:
        """Answer a device in this process, both ways as bytes, as on a wire."""
        arrived = decode_frame(encode_frame(request), _MOST_BYTES)
        return decode_frame(encode_frame(self.handle(arrived, here=True)), _MOST_BYTES)

    def end(self) -> None:
        """Refuse what still waits, and end."""
        self.scheduler.end()

    def _check(self, request: Frame) -> None:
        """Refuse a request that does not hold exactly what its kind has."""
        expected = _FIELDS.get(request.kind)
        if expected is None:
            raise GenerationRefused(
                "wrong", f"a request is {shown(request.kind)}; ask {', '.join(_FIELDS)}"
            )
        if set(request.fields) != expected:
            raise GenerationRefused(
                "wrong",
                f"{request.kind} holds {shown(sorted(request.fields))}; send "
                f"{', '.join(sorted(expected))}",
            )
        if (request.kind not in _WITH_ACTIVATION) == bool(request.tensors):
            raise GenerationRefused(
                "wrong", f"{request.kind} has {len(request.tensors)} tensors; only an activation is"
            )
        name = request.fields.get("session", "")
        if not isinstance(name, str):
            raise GenerationRefused("wrong", f"session is {shown(name)}; send the name as a text")

    def _open(self, request: Frame) -> Frame:
        fields = request.fields
        check_identity(self._identity, fields)
        ranks = self._ranks.get(request.client, self._default)
        if ranks is None:
            raise GenerationRefused(
                "wrong",
                f"client {shown(request.client)} took no part in the run, whose clients are "
                f"{', '.join(sorted(self._ranks)) or 'none'}; ask as one of them",
            )
        version = self.engine.version
        if fields["adapter"] not in ("", version):
            raise GenerationRefused(
                "wrong",
                f"adapter is {shown(fields['adapter'])[:20]}, and the server has {version[:12]}; "
                "ask for that, or leave it out",
            )
        session = self.sessions.open(request.client, version, ranks)
        told = {
            "session": session.name,
            "adapter": version,
            "most_tokens": self.engine.most_tokens,
        }
        return Frame(m.GEN_OPENED, request.client, request.seq, told)

    def _extend(self, request: Frame, *, here: bool) -> Frame:
        fields = request.fields
        tokens = field_of(fields, "tokens", 1, _MOST_TOKENS)
        position = field_of(fields, "position", 0, _MOST_TOKENS)
        last = field_of(fields, "last", 1, tokens)
        if position + tokens > self.engine.most_tokens:
            raise GenerationRefused(
                "long",
                f"position {position} and {tokens} tokens come to {position + tokens}, and the "
                f"model has {self.engine.most_tokens} positions; shorten the text",
            )
        most = self.sessions.bounds.tokens_per_client
        if tokens > most:  # before anything is made of a payload, which may be far smaller
            raise GenerationRefused(
                "full",
                f"client {shown(request.client)} sends {tokens} tokens, and may hold {most}; "
                "shorten the text",
            )
        width = self.engine.geometry.activation_width
        activation = unpack(request.tensors, "activation", self._up, (tokens, width))
        session = self.sessions.begin(
            fields["session"], request.client, self.engine.version, position, tokens
        )
        try:
            early = request.kind == m.GEN_EARLY
            answer = self.scheduler.submit(session, activation, last, early=early, here=here)
            return self._states(request, answer.result(), position + tokens)
        finally:
            self.sessions.end(session)

    def _rest(self, request: Frame, *, here: bool) -> Frame:
        """Take the tokens that wait through the last blocks."""
        fields = request.fields
        last = field_of(fields, "last", 1, _MOST_TOKENS)
        session = self.sessions.begin(
            fields["session"], request.client, self.engine.version, None, 0
        )
        try:
            waiting = session.pages.waiting
            if last > waiting:
                raise GenerationRefused(
                    "wrong",
                    f"last is {last}, and {waiting} tokens of session {session.name} wait for the "
                    f"last blocks; ask for those, or send the others again with {m.GEN_EXTEND}",
                )
            nothing = torch.empty(0, self.engine.geometry.activation_width)
            answer = self.scheduler.submit(session, nothing, last, here=here)
            return self._states(request, answer.result(), session.pages.length)
        finally:
            self.sessions.end(session)

    def _states(self, request: Frame, states: torch.Tensor, position: int) -> Frame:
        parts = pack("representation", states, self._down)
        return Frame(m.GEN_STATES, request.client, request.seq, {"position": position}, parts)

    def _check_leaves(self, block: int) -> None:
        own = self.engine.leave_after
        if block == own:
            return
        told = f"the device would leave after block {block}, and this server "
        if own:
            told += f"lets tokens leave after {own}; give the device --leave-after {own}"
        else:
            told += f"lets none leave; serve with --leave-after {block}, or write without it"
        raise GenerationRefused("wrong", told)
