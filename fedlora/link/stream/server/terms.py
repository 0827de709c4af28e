"""What holds for every stream of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from fedlora.link import Frame
from fedlora.link.stream import ResumeSecrets, TokenStore
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.refusals import Refusals

Admit = Callable[[Frame, str], Mapping[str, Any]]


@dataclass(frozen=True)
class StreamTerms:
    """What holds for every stream of a server.

    Attributes
    ----------
    tokens, admit, max_frame_bytes, queue_frames, hello_timeout_s, max_clients
        See ``StreamServer``.
    refusals
        Where the server writes whom it refuses.
    secrets
        By which sessions are taken up again.
    offer
        Takes the link of a client that was admitted.
    move
        Takes a link from the stream that carried it, for this one; None when its session is over.
    loop
        The server's event loop.
    admissions
        Where ``admit`` runs.
    """

    tokens: TokenStore
    refusals: Refusals
    secrets: ResumeSecrets
    admit: Admit
    max_frame_bytes: int
    queue_frames: int
    hello_timeout_s: float
    max_clients: int
    offer: Callable[[StreamLink], None]
    move: Callable[[str, str], StreamLink | None]
    loop: asyncio.AbstractEventLoop
    admissions: Executor
