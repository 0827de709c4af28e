"""Addresses that a server listens on."""

from __future__ import annotations

import socket

from fedlora.errors import FedloraError


def address_of(host: str, port: int) -> str:
    """Return host and port as gRPC writes them, with brackets around IPv6 that may have them."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def dialled(host: str, public_host: str = "") -> str:
    """Return what clients dial: the public name, or the address itself, unless that is all of them.

    Where a server listens on every address, this machine's loopback stands for them.
    """
    if public_host:
        return public_host
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host)


def cannot_listen(
    host: str, port: int, port_key: str = "link.port", host_key: str = "link.host"
) -> FedloraError:
    """Return the error for an address that is not this machine's, or is taken."""
    return FedloraError(
        f"cannot listen on {address_of(host, port)}; set {port_key} to a free port (0 takes any) "
        f"and {host_key} to an address of this machine"
    )


def check_listens(
    host: str, port: int, port_key: str = "link.port", host_key: str = "link.host"
) -> None:
    """Refuse an address on which nothing can listen now; the keys are those that set it.

    Raises
    ------
    FedloraError
        When the name has no address, the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen()
    except (OSError, UnicodeError):
        raise cannot_listen(host, port, port_key, host_key) from None
