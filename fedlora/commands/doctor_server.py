"""What a device must reach and hold before it takes part: ``fedlora doctor --server``."""

from __future__ import annotations

import datetime
import email.utils
import http.client
import importlib.util
import socket
import ssl
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora import __version__
from fedlora.commands.finding import Finding, refused
from fedlora.errors import FedloraError
from fedlora.link import PROTOCOL

if TYPE_CHECKING:
    from fedlora.split import Checkpoint

_TIMEOUT_S = 5.0
_OFFSET_S = 30.0
_SOON_DAYS = 14
_MEND_CLOSED = "start flower-superlink with --host 0.0.0.0 there, or mend the port"


def examine_server(
    address: str, certificates: Path | None, stream_port: int = 0
) -> Iterator[Finding]:
    """Look at a server from a device.

    Parameters
    ----------
    address
        ``HOST`` or ``HOST:PORT`` of the SuperLink (port 8000 by default).
    certificates
        The authority's certificate; None trusts the system's authorities.
    stream_port
        ``link.port`` of the runs to come; 0 leaves it out.
    """
    host, port = split_address(address)
    yield Finding("fedlora, protocol", f"{__version__}, {PROTOCOL} (alike on the server?)")
    if (yield from _reach(host, port, "SuperLink", _MEND_CLOSED)):
        yield from _superlink(host, port, certificates)
    if stream_port:
        yield from _stream(host, stream_port)


def examine_model(path: str) -> Iterator[Finding]:
    """Look at a model folder or edge package; its digests must be those of the server's."""
    from fedlora.split import Checkpoint, has_tokenizer, model_folder
    from fedlora.tasks import load_tokenizer

    try:
        checkpoint = Checkpoint(model_folder(path))
        kind = "edge package" if checkpoint.manifest else "whole model"
        yield Finding("model", f"{kind}, {checkpoint.model_type}, in {checkpoint.folder}")
        yield Finding("weights digest", checkpoint.weights_digest[:16])
        yield Finding("config digest", checkpoint.config_digest[:16])
        yield _conformity(checkpoint)
        digest = "none here, which serves for tasks whose inputs are no texts alone"
        if has_tokenizer(checkpoint.folder):
            digest = load_tokenizer(checkpoint.folder).digest[:16]
        yield Finding("tokenizer digest", digest)
    except FedloraError as error:
        yield refused("model", error)


def _conformity(checkpoint: Checkpoint) -> Finding:
    """Tell how a model's ends compare with Hugging Face's own code."""
    from fedlora.split import check_conformity

    what = "beside transformers"
    if not checkpoint.manifest and not importlib.util.find_spec("transformers"):
        return Finding(what, "not compared: transformers is not installed here; the server does it")
    found = check_conformity(checkpoint)
    if found is None:
        return Finding(what, "not compared when the package was made; fedlora slice does it now")
    logits = "" if found.logits is None else f", logits by {found.logits:.1e}"
    return Finding(
        what, f"{found.transformers}: states differ by {found.states:.1e}{logits} (relative)"
    )


def split_address(address: str) -> tuple[str, int]:
    """Split ``HOST[:PORT]``, where an IPv6 address with a port is in brackets.

    Raises
    ------
    FedloraError
        When the port is no number from 1 to 65535.
    """
    host, port = address, "8000"
    if address.count(":") == 1 or "]:" in address:
        host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise FedloraError(f"--server {address!r} has no usable port; write HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _reach(host: str, port: int, what: str, closed: str) -> Generator[Finding, None, bool]:
    """Yield whether a port takes connections; return it as well."""
    name = f"{what} {host}:{port}"
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except socket.gaierror:
        yield Finding(name, "name is not known", f"check the spelling of {host}, and DNS")
    except ConnectionRefusedError:
        yield Finding(name, "nothing listens there", closed)
    except OSError as error:
        mend = f"let TCP to {host}:{port} through every firewall on the way"
        yield Finding(name, "no answer" if isinstance(error, TimeoutError) else str(error), mend)
    else:
        yield Finding(name, "reached")
        return True
    return False


def _superlink(host: str, port: int, certificates: Path | None) -> Iterator[Finding]:
    """Speak TLS and HTTP with the SuperLink, and compare clocks."""
    try:
        context = ssl.create_default_context(cafile=certificates)
    except (OSError, ssl.SSLError) as error:
        yield Finding("authority", f"{certificates}: {error}", "copy ca.crt from the server anew")
        return
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        asked = time.time()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        answered = time.time()
        assert isinstance(connection.sock, ssl.SSLSocket | None)
        yield from _certificate(connection.sock)
        good = response.status == http.HTTPStatus.OK
        mend = "" if good else "another program listens there; mend the port"
        yield Finding("SuperLink", f"answers {response.status}", mend)
        yield from _clock(response.headers.get("Date"), (asked + answered) / 2)
    except ssl.SSLCertVerificationError as error:
        yield Finding("TLS", error.verify_message, _tls_mend(host, error.verify_message))
    except (OSError, http.client.HTTPException) as error:
        mend = "start flower-superlink with --ssl-certfile, --ssl-keyfile and --ssl-ca-certfile"
        yield Finding("TLS", str(error), mend)
    finally:
        connection.close()


def _tls_mend(host: str, reason: str) -> str:
    if "match" in reason or "not valid for" in reason:
        return f"make the certificate with fedlora certs --host {host}"
    if "expired" in reason or "not yet valid" in reason:
        return "set both clocks (NTP), or make new certificates with fedlora certs"
    return "give --root-certificates the ca.crt that fedlora certs made for this server"


def _certificate(secured: ssl.SSLSocket | None) -> Iterator[Finding]:
    if secured is None:  # the server has closed already
        yield Finding("TLS", "verified")
        return
    ends = str((secured.getpeercert() or {}).get("notAfter", ""))
    left = datetime.timedelta(seconds=ssl.cert_time_to_seconds(ends) - time.time()).days
    mend = "make new certificates soon (fedlora certs)" if left < _SOON_DAYS else ""
    yield Finding("TLS", f"{secured.version()}, verified, {left} days left", mend)


def _clock(date: str | None, now: float) -> Iterator[Finding]:
    """Compare with the server's clock, which HTTP tells to the second."""
    if date is None:
        return
    offset = now - email.utils.parsedate_to_datetime(date).timestamp() - 0.5
    mend = "" if abs(offset) < _OFFSET_S else "set both clocks (NTP): signatures are timed"
    yield Finding("clock", f"{offset:+.1f} s against the server's", mend)


def _stream(host: str, port: int) -> Iterator[Finding]:
    """Look at the tensor stream's port, which is open while a run goes on."""
    for finding in _reach(host, port, "tensor stream", ""):
        if finding.found == "nothing listens there":
            yield Finding(finding.what, "reached; no run is going on there now")
        else:
            yield finding
