"""A stream on which the client asks and the server answers, as in generation."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc

from fedlora.errors import ClientLost, ProtocolError, printable
from fedlora.link import Frame, decode_frame, encode_frame
from fedlora.link.stream import (
    GENERATION_METHOD,
    GENERATION_SERVICE,
    channel_options,
    keep_freed_memory,
    tls,
)

_FIRST_S = 15.0  # within which a server that was dialled has to answer
_KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S = 20.0, 10.0


class AskingStream:
    """One stream to one server; for one thread at a time.

    Parameters
    ----------
    address
        ``host:port``.
    authority_pem
        The authority of the server's certificate; None means plain text, on loopback only.
    max_frame_bytes
        Largest frame that is sent or accepted.

    Raises
    ------
    FedloraError
        When plain text is asked for beyond loopback.
    """

    def __init__(self, address: str, authority_pem: bytes | None, max_frame_bytes: int) -> None:
        keep_freed_memory()
        host = address.rpartition(":")[0]
        options: list[Any] = [
            *channel_options(max_frame_bytes, _KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S),
            *([("grpc.enable_http_proxy", 0)] if tls.is_loopback(host) else []),
        ]
        self.address = address
        self._most = max_frame_bytes
        if authority_pem is None:
            self._channel = tls.open_channel(address, None, options)
        else:
            self._channel = tls.open_verified(address, authority_pem, options)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(f"/{GENERATION_SERVICE}/{GENERATION_METHOD}")
        self._call = method(iter(self._outgoing.get, None))
        self._answered = False

    def first(self) -> Frame:
        """Return what the server says by itself, which is the first frame of a stream.

        Raises
        ------
        ClientLost
            When there is no such server, or it says nothing.
        """
        watch = threading.Timer(_FIRST_S, self._call.cancel)
        watch.daemon = True
        watch.start()
        try:
            return self._next()
        finally:
            watch.cancel()

    def ask(self, frame: Frame) -> Frame:
        """Send a request and return the answer.

        Raises
        ------
        ClientLost
            When the stream breaks.
        ProtocolError
            When what comes is no frame, or the server did not take this one for one.
        """
        data = encode_frame(frame)
        if len(data) > self._most:
            raise ProtocolError(
                f"{frame.kind} has {len(data)} bytes and exceeds the frame limit of {self._most}; "
                "shorten the text, or raise link.max_frame_mib"
            )
        self._outgoing.put(data)
        return self._next()

    def close(self) -> None:
        """Let go of everything."""
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()

    def _next(self) -> Frame:
        try:
            data = next(self._call)
        except StopIteration:
            raise ClientLost(f"{self.address} ended the stream") from None
        except grpc.RpcError as error:
            raise self._lost(error) from None
        self._answered = True
        return decode_frame(data, self._most)

    def _lost(self, error: Any) -> ClientLost | ProtocolError:
        code, details = error.code(), printable(error.details())
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return ProtocolError(f"{self.address} took a request for none: {details}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return ClientLost(f"{self.address} is no fedlora serve; name host and port of one")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return ProtocolError(
                f"a frame is too large for {self.address} or this device: {details}"
            )
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ClientLost(f"{self.address} serves as many devices as it can; try again later")
        if self._answered:
            return ClientLost(f"the stream to {self.address} broke ({details})")
        if code == grpc.StatusCode.CANCELLED:
            return ClientLost(f"{self.address} took the connection and gave no answer")
        return ClientLost(
            f"no connection to {self.address} ({details}); check that fedlora serve runs there, "
            "and that its certificate is of the authority given here"
        )
