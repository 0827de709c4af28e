"""TLS for the tensor stream: a certificate made for one run, which the clients pin."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import FedloraError
from fedlora.link.stream.address import address_of, cannot_listen

SERVER_NAME: Final = "fedlora"
"""Name in every certificate; a client checks it whatever address it dialled."""


@dataclass(frozen=True)
class TlsIdentity:
    """A server's certificate and its private key; the key lives in memory only.

    Attributes
    ----------
    certificate_pem
        What clients pin; not secret.
    private_key_pem
        Not for logs and not for disk.
    """

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)


def create_identity(public_host: str = "", valid_days: float = 3650.0) -> TlsIdentity:
    """Return a fresh self-signed EC P-256 certificate and its key.

    Parameters
    ----------
    public_host
        Host name or address that clients dial.
    valid_days
        Days from now until the certificate ends; it starts one day back, for clocks that are late.
        The key goes with its process, so the end means nothing but that no stream could be opened
        again in a longer run.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    hosts = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", public_host or SERVER_NAME])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    return TlsIdentity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def server_credentials(identity: TlsIdentity) -> Any:
    """Return the gRPC server credentials of an identity."""
    return grpc.ssl_server_credentials([(identity.private_key_pem, identity.certificate_pem)])


def bind(server: Any, host: str, port: int, identity: TlsIdentity | None, *keys: str) -> int:
    """Let a gRPC server listen, and return its port.

    Parameters
    ----------
    server
        Of ``grpc`` or ``grpc.aio``, not yet started.
    host, port
        Address; port 0 takes any free one.
    identity
        None means plain text, for loopback addresses only.
    keys
        What sets port and host, where that is not the scenario's ``link``.

    Raises
    ------
    FedloraError
        When the address is not this machine's, or is taken.
    """
    address = address_of(host, port)
    try:
        if identity is None:
            bound: int = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, server_credentials(identity))
    except RuntimeError:
        bound = 0
    if not bound:
        raise cannot_listen(host, port, *keys)
    return bound


def open_channel(address: str, certificate_pem: bytes | None, options: list[Any]) -> Any:
    """Return a gRPC channel that trusts this one certificate and no authority.

    Parameters
    ----------
    address
        ``host:port``.
    certificate_pem
        The pinned certificate; None means plain text, for loopback addresses only.
    options
        gRPC channel options.

    Raises
    ------
    FedloraError
        When plain text is asked for an address that is not loopback.
    """
    if certificate_pem is None:
        require_loopback(address.rpartition(":")[0])
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(root_certificates=certificate_pem)
    name = ("grpc.ssl_target_name_override", SERVER_NAME)
    return grpc.secure_channel(address, credentials, [*options, name])


def open_verified(address: str, authority_pem: bytes, options: list[Any]) -> Any:
    """Return a gRPC channel to a server whose certificate is of an authority, for its own name.

    Parameters
    ----------
    address
        ``host:port``.
    authority_pem
        The authority's certificate, as ``fedlora certs`` writes ``ca.crt``.
    options
        gRPC channel options.
    """
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority_pem), options)


def read_identity(certificate: Path, key: Path) -> TlsIdentity:
    """Return a server's certificate and key from their files.

    Raises
    ------
    FedloraError
        When one cannot be read, they do not belong together, or the certificate has ended.
    """
    again = "make a new pair with fedlora certs"
    try:
        pems = certificate.read_bytes(), key.read_bytes()
        own, private = (
            x509.load_pem_x509_certificate(pems[0]),
            serialization.load_pem_private_key(pems[1], None),
        )
    except OSError as error:
        raise FedloraError(f"cannot read {error.filename}: {error.strerror}; {again}") from None
    except (ValueError, TypeError) as error:
        reason = str(error).partition(".")[0]
        raise FedloraError(
            f"{certificate} and {key} hold no certificate and key ({reason}); {again}"
        ) from None
    if own.public_key() != private.public_key():
        raise FedloraError(f"{key} is not the key of {certificate}; {again}")
    if own.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise FedloraError(
            f"{certificate} ended on {own.not_valid_after_utc:%Y-%m-%d}; remove it and {key}, and "
            f"{again}"
        )
    return TlsIdentity(*pems)


def require_loopback(host: str) -> None:
    """Refuse plain text, which would show tokens and tensors, on anything but loopback.

    Raises
    ------
    FedloraError
        When the host is not a loopback address.
    """
    if not is_loopback(host):
        raise FedloraError(
            f"host {host!r} is not loopback and would be spoken to in plain text; use TLS, whose "
            "certificates fedlora certs makes, or 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)
