"""The endpoint: ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio import CapacityLimiter, Semaphore
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clients.gateway.faults import RequestFault, as_fault, error_body, error_response, json_response
from clients.gateway.guard import Guard
from clients.gateway.replies import Reply
from clients.gateway.requests import TextRequest, read_request
from clients.gateway.writers import Running, TextModel, Writers
from fedlora.errors import FedloraError

log = logging.getLogger("fedlora.edge")

_MOST_BYTES = 4 << 20  # of a body
_MOST_WAITING = 64
_UNREAD_S = 60.0
"""How long a stream waits for who does not read it."""


class Gateway:
    """Answers applications with a split model's texts.

    Parameters
    ----------
    model
        What writes them.
    name
        What applications call it.
    at_once
        Texts that are written at once; further requests wait.
    """

    def __init__(self, model: TextModel, name: str, at_once: int) -> None:
        self._name, self._began = name, int(time.time())
        self._writers = Writers(model, at_once)
        self._at_once, self._waiting = at_once, 0
        self._places: Semaphore | None = None
        self._threads: CapacityLimiter | None = None

    def app(self, key: str) -> ASGIApp:
        """Return the application, which answers who has the key."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _no_route,
            FedloraError: _refused,
            Exception: _failed,
        }
        return Guard(Starlette(routes=routes, exception_handlers=handlers), key)

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._told()]})

    async def _model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._name:
            raise RequestFault(
                f"there is no model {name!r}, only {self._name!r}; ask for that",
                *("model", "model_not_found", 404),
            )
        return json_response(self._told())

    def _told(self) -> dict[str, Any]:
        told = {"id": self._name, "object": "model", "created": self._began}
        return {**told, "owned_by": "fedlora"}

    async def _chat(self, request: Request) -> ASGIApp:
        return await self._answer(request, chat=True)

    async def _complete(self, request: Request) -> ASGIApp:
        return await self._answer(request, chat=False)

    async def _answer(self, request: Request, *, chat: bool) -> ASGIApp:
        asked = read_request(await _body(request), self._name, chat=chat)
        places, threads = await self._begin()
        running: Running | None = None
        try:
            running = await run_sync(self._writers.begin, asked, limiter=threads)
            first = await run_sync(running.next, limiter=threads)
        except BaseException:
            self._end(running, places)
            raise
        kind = "chat.completion" if chat else "text_completion"
        reply = Reply(self._name, kind, secrets.token_hex(12), int(time.time()))
        text = _Text(self, request, running, first, places, threads)
        return _Stream(text, reply, asked) if asked.stream else await _whole(text, reply)

    async def _begin(self) -> tuple[Semaphore, CapacityLimiter]:
        """Wait for a place, and return what places and threads are counted by."""
        if self._places is None or self._threads is None:  # they belong to the running loop
            self._places = Semaphore(self._at_once)
            self._threads = CapacityLimiter(self._at_once)
        if self._waiting >= _MOST_WAITING:
            raise RequestFault(
                f"{self._waiting} requests wait for a text to end; try again later",
                *(None, "too_many_requests", 429),
            )
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        return self._places, self._threads

    def _end(self, running: Running | None, places: Semaphore) -> None:
        if running is not None:
            running.end()
        places.release()

    def end(self, text: _Text) -> None:
        """Give back what a text took."""
        self._end(text.running, text.places)


class _Text:
    """A text that has begun, for who asked for it."""

    def __init__(
        self,
        gateway: Gateway,
        request: Request,
        running: Running,
        first: str | None,
        places: Semaphore,
        threads: CapacityLimiter,
    ) -> None:
        self._gateway, self._request, self._first = gateway, request, first
        self.running, self.places, self._threads = running, places, threads

    async def pieces(self) -> AsyncIterator[str]:
        """Yield what can be shown, until it ends or nobody is there any more."""
        piece = self._first
        while piece is not None:
            if await self._request.is_disconnected():
                raise ClientDisconnect
            yield piece
            piece = await run_sync(self.running.next, limiter=self._threads)

    def end(self) -> None:
        self._gateway.end(self)


async def _whole(text: _Text, reply: Reply) -> Response:
    """Return the answer that holds the whole text."""
    try:
        said = [piece async for piece in text.pieces()]
        running = text.running
        return json_response(reply.whole("".join(said), running.text.finish, running.usage()))
    except ClientDisconnect:
        return Response(status_code=499)  # which nobody reads
    finally:
        text.end()


class _Stream:
    """The answer that comes piece by piece, as server-sent events."""

    def __init__(self, text: _Text, reply: Reply, asked: TextRequest) -> None:
        self._text, self._reply, self._asked = text, reply, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers.append((b"cache-control", b"no-store"))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for event in self._events():
                with anyio.fail_after(_UNREAD_S):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (ClientDisconnect, TimeoutError):
            return
        finally:
            self._text.end()

    async def _events(self) -> AsyncIterator[bytes]:
        running, reply = self._text.running, self._reply
        usage = self._asked.usage_in_stream
        try:
            if (opening := reply.opening(usage=usage)) is not None:
                yield _event(opening)
            async for piece in self._text.pieces():
                yield _event(reply.piece(piece, usage=usage))
            yield _event(reply.last(running.text.finish, usage=usage))
            if usage:
                yield _event(reply.usage(running.usage()))
        except ClientDisconnect:
            raise
        except Exception as error:  # it began as a success, so that only an event can tell
            fault = as_fault(error) if isinstance(error, FedloraError) else _fault(error)
            yield _event(error_body(fault))
            return
        yield b"data: [DONE]\n\n"


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


async def _body(request: Request) -> bytes:
    """Return a body of bounded size."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > _MOST_BYTES:
            raise RequestFault(f"the body has over {_MOST_BYTES} bytes; shorten it", status=413)
    return bytes(found)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FedloraError)
    return error_response(as_fault(error))


async def _failed(_request: Request, error: Exception) -> Response:
    return error_response(_fault(error))


def _fault(error: Exception) -> RequestFault:
    """Return how a fault of the gateway itself is told; its words may quote a text."""
    log.error("a request failed: %s", type(error).__name__)
    return RequestFault(
        f"the gateway fails on this request ({type(error).__name__}); ask again",
        *(None, "failed", 500),
    )


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    there = "POST /v1/chat/completions, POST /v1/completions and GET /v1/models"
    fault = RequestFault(
        f"{asked!r} is nothing that is answered here; ask {there}", status=error.status_code
    )
    return error_response(fault, error.headers)
