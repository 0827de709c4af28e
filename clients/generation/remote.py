"""A run's model on a device whose server is elsewhere: token embedding and head are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clients.build import load_parts
from clients.generation.connection import Credentials, ServerConnection
from clients.generation.leaving import LeaveEarly
from clients.generation.remote_row import ALLOWED, RemoteRow
from clients.generation.text_diary import TextDiary
from clients.generation.text_model import TextModel, language_head_of, writer_of
from clients.generation.writer import Writer
from clients.owner import Door, OwnerTerms
from fedlora.commands.prompts import TaskFacts
from fedlora.commands.serving.run_package import read_package
from fedlora.config import NodeKeys, states_folder
from fedlora.errors import FedloraError
from fedlora.link.stream import address_of, read_node_key
from fedlora.registry import use_python_path
from fedlora.split import model_folder

_NO_KEYS = (
    "--server speaks TLS and asks for this device's key: give --root-certificates ca.crt and "
    "--node-key nodeK, as fedlora certs made them, or --insecure for a server of loopback"
)


@dataclass(frozen=True)
class Reach:
    """Which servers a device may ask, and how each knows the other.

    Attributes
    ----------
    servers
        ``HOST:PORT`` of each.
    root_certificates, node_key
        Files of the authority and of this device's private key.
    insecure
        Whether plain text is meant, on loopback.
    node_config
        The owner's keys as they are typed.
    give_up_s
        How long lost servers are dialled again.
    """

    servers: Sequence[str]
    root_certificates: Path | None = None
    node_key: Path | None = None
    insecure: bool = False
    node_config: Mapping[str, Any] = field(default_factory=dict)
    give_up_s: float = 60.0

    def addresses(self) -> list[str]:
        """Return the servers' addresses as they are dialled.

        Raises
        ------
        FedloraError
            When one is none.
        """
        found = []
        for server in self.servers:
            host, _, port = server.rpartition(":")
            right = host and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
            if not right or "/" in host:
                raise FedloraError(f"--server is {server!r:.80}; write HOST:PORT, without a scheme")
            found.append(address_of(host, int(port)))
        return found

    def credentials(self) -> Credentials | None:
        """Return what shows server and device to each other; None for plain text.

        Raises
        ------
        FedloraError
            When a file is missing or cannot be read, or plain text is asked for beside keys.
        """
        named = [p for p in (self.root_certificates, self.node_key) if p is not None]
        if self.insecure:
            if named:
                raise FedloraError(f"--insecure and {named[0]} exclude each other; give one")
            return None
        if self.root_certificates is None or self.node_key is None:
            raise FedloraError(_NO_KEYS)
        try:
            authority = self.root_certificates.read_bytes()
        except OSError as error:
            raise FedloraError(
                f"--root-certificates {self.root_certificates} cannot be read "
                f"({error.strerror}); name ca.crt of the server"
            ) from None
        if b"BEGIN CERTIFICATE" not in authority:
            raise FedloraError(
                f"--root-certificates {self.root_certificates} holds no certificate; name ca.crt "
                "of the server"
            )
        return Credentials(authority, read_node_key(self.node_key))


@dataclass
class RemoteModel(TextModel):
    """A device's parts of a run's model, and its way to a server.

    Attributes
    ----------
    ways
        One for each writer; what else there is, see ``TextModel``.
    """

    ways: list[ServerConnection]

    @classmethod
    def open(
        cls,
        folder: Path,
        client: str | None,
        model: str,
        longest_draft: int,
        reach: Reach,
        leaving: LeaveEarly | None = None,
    ) -> RemoteModel:
        """Open a package or run, and find a server.

        Parameters
        ----------
        folder
            What ``fedlora slice RUN`` wrote, or a run.
        client
            Which client this device is, where no key says it.
        model
            Edge package or checkpoint on this device, where it is not in the folder.
        longest_draft
            Most tokens that are guessed at once; 0 for none.
        reach
            The servers.
        leaving
            When a token is taken before the last blocks; None for never.

        Raises
        ------
        FedloraError
            When the owner does not allow it, keys or files are missing, or no server takes this
            device in.
        """
        keys = NodeKeys.read(reach.node_config)
        terms = OwnerTerms.of(keys)
        addresses, credentials = reach.addresses(), reach.credentials()
        _check_allowed(keys, terms, addresses)
        package = read_package(folder, client)
        scenario = package.scenario
        link = scenario.link
        named = scenario.task.kind + link.activation + link.representation
        use_python_path(scenario.python_path, needed=":" in named)
        place = model_folder(model or package.model or keys.model or scenario.model.path)
        scenario = replace(scenario, model=replace(scenario.model, path=str(place)))
        torch.set_num_threads(scenario.compute.threads or torch.get_num_threads())
        parts = load_parts(scenario)
        assert parts.tokenizer is not None, "a language task has one"
        claimed = "" if keys.partition_id is None else str(keys.partition_id)
        if client is not None and claimed and client != claimed:
            raise FedloraError(
                f"--client is {client!r:.40} and partition-id in the node configuration {claimed}; "
                "leave --client out"
            )
        door, geometry = Door(terms), parts.model.geometry
        head, ways = language_head_of(parts, package.head), list[ServerConnection]()

        def new_writer() -> Writer:
            connection = ServerConnection(
                *(addresses, credentials, door, link, geometry),
                claimed=client or claimed,
                adapter=package.adapter,
                give_up_s=reach.give_up_s,
            )
            connection.connect()
            ways.append(connection)
            own = connection.client
            row = RemoteRow(connection.ask, own, door, parts.identity, link, geometry)
            row.adapter = package.adapter
            writer = writer_of(parts, head, row, longest_draft, leaving)
            writer.diary = TextDiary(states, row, own, ", ".join(addresses))
            return writer

        states, facts = states_folder(reach.node_config), TaskFacts.of(scenario)
        return cls(facts, parts, parts.tokenizer, new_writer, ways, texts=states / "texts")

    def end(self) -> None:
        """Close the session and all streams."""
        super().end()
        for way in self.ways:
            way.close()


def _check_allowed(keys: NodeKeys, terms: OwnerTerms, addresses: Sequence[str]) -> None:
    """Refuse what the owner does not allow, before anything is dialled."""
    if not terms.allows(ALLOWED):
        raise FedloraError(
            f"privacy-epsilon is {keys.privacy_epsilon:g} in the node configuration, and prompt "
            f'and text would leave embedded and without noise; set {ALLOWED}="true" to allow it'
        )
    for address in addresses:
        host = address.rpartition(":")[0]
        if keys.server and not {address, host, host.strip("[]")} & set(keys.server):
            raise FedloraError(
                f"--server is {address:.80}, but server in the node configuration is "
                f"{', '.join(keys.server)}; add it there if it is right"
            )
