"""Reading the batches that clients send: rows as they are, or named as sent before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import Again, Frame, create_codec, messages as m
from fedlora.server.air import Air
from fedlora.server.compute import SplitEngine
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.kept_rows import KeptRows, rows_on_disk
from fedlora.server.exchange.member import Member
from fedlora.server.exchange.representations import Representations
from fedlora.server.exchange.uploads import Activation, SentActivation, read_activation

log = logging.getLogger("fedlora.server")


@dataclass(frozen=True)
class _Owed:
    """Rows that a client was asked for and had not sent in time; its batch waits for them.

    Attributes
    ----------
    member, seq
        The request.
    batch
        The batch that they belong to.
    missing
        Their identifiers.
    """

    member: Member
    seq: int
    batch: SentActivation
    missing: Collection[int]


class Batches:
    """Reads activations; asks once more for rows that are named and not there.

    Parameters
    ----------
    scenario, engine, cohort
        As for ``StepLoop``.
    air
        Books what is asked again because the server has begun again.

    Attributes
    ----------
    kept
        Rows that need not be sent again; None where none are kept.
    representations
        Writes what goes down for the rows.
    """

    def __init__(self, scenario: Scenario, engine: SplitEngine, cohort: Cohort, air: Air) -> None:
        self._scenario, self._engine, self._cohort, self._air = scenario, engine, cohort, air
        codec = scenario.link.codec("activation")
        self._codec = create_codec(**codec, vocabulary=engine.vocabulary)
        if scenario.link.sends_tokens:
            log.warning(
                "link.activation is tokens: devices send the vocabulary's numbers of their texts, "
                "which whoever runs the server can read"
            )
        self._targets_only = engine.geometry.targets_only(scenario)
        self.representations = Representations(scenario, cohort, pooled=engine.pool is not None)
        self.kept: KeptRows | None = None
        self._owed: dict[str, _Owed] = {}
        # A sample's activation stays the same where the embedding does not train.
        if scenario.link.reuse and not scenario.train.embedding:
            clients = max(1, scenario.federation.clients)
            files = rows_on_disk(scenario.link.reuse_folder)
            self.kept = KeptRows((scenario.link.reuse_mib << 20) // clients, files)

    def close(self) -> None:
        """Forget all rows at the end of a run."""
        if self.kept is not None:
            self.kept.close()
        self.representations.retain(())
        self._engine.prefix.close()

    def begin_phase(self) -> None:
        """Forget all rows: what training costs does not depend on a baseline before it."""
        if self.kept is not None:
            self.kept.retain(())
        self.representations.retain(())

    def fields(self, client: str) -> dict[str, Any]:
        """Return what a request that an activation answers says of it, and of the last one."""
        return {**({"targets": True} if self._targets_only else {}), **self._told(client)}

    def state_dict(self) -> dict[str, Any]:
        """Return which rows are kept of each client; the rows themselves are sent again."""
        return {} if self.kept is None else self.kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], clients: Iterable[str]) -> None:
        """Take up ``state_dict`` for clients that remember the same of it."""
        for client in clients:
            if self.kept is not None and client in state and client in self._cohort:
                self.kept.load(client, self._cohort[client], state[client])

    def read(
        self, replies: Mapping[str, Frame], max_rows: int, waiting: Iterable[str] = ()
    ) -> dict[str, Activation]:
        """Read the activations in a round of answers; a client that answers wrongly is dropped.

        Who is asked for rows again and is late is missing; its batch is whole once it has answered.

        Parameters
        ----------
        replies
            By client.
        max_rows
            The most rows of one client.
        waiting
            Others that have done their part and wait for these.
        """
        if self.kept is not None:
            self.kept.retain(self._cohort.clients)
        self._engine.retain(self._cohort.clients)
        self.representations.retain(self._cohort.clients)
        self._owed = {client: owed for client, owed in self._owed.items() if client in self._cohort}
        sent: dict[str, SentActivation] = {}
        for client, reply in replies.items():
            try:
                sent[client] = self._batch_of(client, reply, max_rows)
            except ProtocolError as error:
                self._cohort.drop(client, str(error))
        lost = {client: missing for client, own in sent.items() if (missing := own.missing)}
        restored = {c: [i for i in ids if self._restores(c, i)] for c, ids in lost.items()}
        beside = {*sent, *waiting}
        with self._air.apart("resume"):
            self._ask_again(restored, sent, max_rows, beside)
        lost = {
            c: [i for i in ids if i not in restored[c]]
            for c, ids in lost.items()
            if c not in self._owed
        }
        self._ask_again(lost, sent, max_rows, beside)
        return {client: own.whole() for client, own in sent.items() if not own.missing}

    def _told(self, client: str) -> dict[str, Any]:
        """Return what a request says of a client's last activation."""
        if self.kept is None or client not in self._cohort:
            return {}
        return {"kept": self.kept.told(client, self._cohort[client])}

    def _restores(self, client: str, identifier: int) -> bool:
        return self.kept is not None and self.kept.restores(client, identifier)

    def _take(self, client: str, reply: Frame, max_rows: int) -> SentActivation:
        own = read_activation(
            reply,
            self._codec,
            width=self._engine.geometry.activation_width,
            max_rows=max_rows,
            max_length=self._scenario.task.max_length,
        )
        if own.ids is None:
            return own
        if self.kept is None:
            raise ProtocolError("it names rows by identifiers, and this run keeps none")
        self.kept.attend(client, self._cohort[client])
        fresh = [(i, r) for i, r in zip(own.ids, own.rows, strict=True) if r is not None]
        self.kept.keep(client, fresh)
        for place, identifier in enumerate(own.ids):
            if own.rows[place] is None:
                own.rows[place] = self.kept.find(client, identifier)
        return own

    def _batch_of(self, client: str, reply: Frame, max_rows: int) -> SentActivation:
        """Return the batch that an answer brings, or that it completes."""
        owed = self._owed.pop(client, None)
        if owed is None or owed.member is not self._cohort[client] or owed.seq != reply.seq:
            return self._take(client, reply, max_rows)
        self._fill(owed.batch, owed.missing, client, reply, max_rows)
        return owed.batch

    def _ask_again(
        self,
        lost: Mapping[str, list[int]],
        sent: Mapping[str, SentActivation],
        max_rows: int,
        waiting: Iterable[str],
    ) -> None:
        """Fill in rows that are not there; a client that cannot say them is dropped."""
        requests = {
            client: Again(
                **self._told(client), ids={"ids": torch.tensor(missing, dtype=torch.int64)}
            )
            for client, missing in lost.items()
            if missing
        }
        if not requests:
            return
        replies = self._cohort.exchange(requests, waiting)
        for client, reply in replies.items():
            try:
                self._fill(sent[client], lost[client], client, reply, max_rows)
            except ProtocolError as error:
                self._cohort.drop(client, str(error))
        for client in requests.keys() & self._cohort.late.keys():
            member = self._cohort[client]
            self._owed[client] = _Owed(member, member.seq, sent[client], lost[client])

    def _fill(
        self,
        batch: SentActivation,
        missing: Collection[int],
        client: str,
        reply: Frame,
        max_rows: int,
    ) -> None:
        """Fill in the rows that a client was asked for again.

        Raises
        ------
        ProtocolError
            When it sends others.
        """
        self._cohort.expect(client, reply, m.ACTIVATION)
        found = self._take(client, reply, max_rows)
        if found.ids is None or found.missing or set(found.ids) != set(missing):
            raise ProtocolError("it sends other rows than those that it was asked for")
        batch.fill(dict(zip(found.ids, found.rows, strict=True)))
