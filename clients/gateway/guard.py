"""Who may ask: no web page, and nobody without the key, although all of this machine reach it."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from clients.gateway.faults import RequestFault, error_response
from fedlora.errors import shown

_HERE = frozenset(("127.0.0.1", "localhost", "::1"))


class Guard:
    """Refuses what does not come from an application of this machine that has the key.

    A page of any site may send requests to loopback, and where its name is rebound to 127.0.0.1 it
    reads the answers as well. Its browser says so: in ``Origin``, and in ``Host``, which is the
    page's name then.

    Parameters
    ----------
    app
        What answers.
    key
        The bearer key.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        fault = self._fault(Headers(scope=scope))
        if fault is None:
            await self._app(scope, receive, send)
            return
        asks = {"WWW-Authenticate": "Bearer"} if fault.status == 401 else None
        await error_response(fault, asks)(scope, receive, send)

    def _fault(self, headers: Headers) -> RequestFault | None:
        host = headers.get("host", "")
        if host_name(host) not in _HERE:
            return RequestFault(
                f"Host is {shown(host)}, under which a web page may have been led here; ask "
                "http://127.0.0.1 or http://localhost",
                *(None, "host_not_allowed", 403),
            )
        if (origin := headers.get("origin")) is not None:
            return RequestFault(
                f"Origin is {shown(origin)}, and no web page may ask; ask from an application",
                *(None, "origin_not_allowed", 403),
            )
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), self._expected):
            told = "is not the gateway's" if given else "is missing"
            return RequestFault(
                f"the bearer key {told}; send 'Authorization: Bearer KEY' with the key that "
                "fedlora gateway printed, or that stands in its key file",
                *(None, "invalid_api_key", 401),
            )
        return None


def host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without its port; empty where it is none."""
    name, bracket, port = host.rpartition("]")
    if bracket:  # an IPv6 address
        name = name.removeprefix("[")
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    return name.lower() if not port or port.isdecimal() else ""
