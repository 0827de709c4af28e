"""What a client remembers of its session, so that a broken stream loses and repeats nothing."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future

from fedlora.link import Frame, Handler
from fedlora.link.messages import WELCOME
from fedlora.link.stream import RESUME, RESUMED, SECRET


class ClientSession:
    """One client on the stream; its requests are answered one at a time, in order.

    Parameters
    ----------
    client
        Identifier of the client.
    handler
        Turns a request into a reply.
    hello
        Opens the session.

    Attributes
    ----------
    over
        Done when the session is.
    requests
        What has come and is not answered yet.
    busy
        Whether a thread answers them.
    begun
        Whether the server has answered the hello.
    asked_at
        When the last request came, by the monotonic clock, in seconds.
    live
        Whether the server knows that the present stream carries the session.
    last_words
        Set once the client has given its last reply: what went wrong, or None for nothing. The
        session is over when the server has said that it has them.
    """

    def __init__(self, client: str, handler: Handler, hello: Frame) -> None:
        self.client = client
        self.handler = handler
        self.over: Future[None] = Future()
        self.over.set_running_or_notify_cancel()  # nobody cancels it: detach does that
        self.requests: deque[bytes] = deque()
        self.busy = False
        self.asked_at = time.monotonic()
        self.begun = False
        self.live = False
        self.last_words: list[BaseException | None] = []
        self._hello = hello
        self._secret = ""
        self._received = -1
        self._replied = -1
        self._reply = b""

    @property
    def received(self) -> int:
        """Number of the last request that came; -1 for none."""
        return self._received

    @property
    def token(self) -> str:
        """The token of its hello."""
        return str(self._hello.fields.get("token", ""))

    @property
    def secret(self) -> str:
        """What takes the session up again; empty before it has begun."""
        return self._secret

    def opening(self) -> Frame:
        """Return what the session sends first on a stream."""
        if not self._secret:
            return self._hello
        return Frame(RESUME, self.client, fields={SECRET: self._secret, "received": self._received})

    def note(self, frame: Frame) -> bool:
        """Take note of a frame from the server; False when it is to be passed over.

        A request that came before is: its reply has been sent, or will be.
        """
        if frame.kind in (WELCOME, RESUMED):
            self._secret = str(frame.fields.get(SECRET, ""))
            self.live = True
        if frame.kind == RESUMED:
            return True
        if frame.seq <= self._received:
            return False
        self._received = frame.seq
        self.asked_at = time.monotonic()
        return True

    def keep(self, seq: int, reply: bytes) -> None:
        """Store the reply to a request, which may have to be sent again as it is."""
        self._replied, self._reply = seq, reply

    def kept(self, seq: object) -> bytes:
        """Return the stored reply to a request; empty when it is that of another."""
        return self._reply if seq == self._replied else b""
