"""The keys of a deployment: an authority, the server's certificate, a key pair for each node."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import FedloraError

AUTHORITY, AUTHORITY_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
_CURVE = ec.SECP384R1()  # what Flower's SuperNode authentication wants
_LOOPBACK = ("localhost", "127.0.0.1")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")


def write_keys(out: Path, hosts: Sequence[str], nodes: int, *, valid_days: int = 365) -> None:
    """Write an authority, the server's certificate and a key pair for each node.

    Parameters
    ----------
    out
        Folder for ``ca.crt``, ``ca.key``, ``server.pem``, ``server.key``, ``node0``, ``node0.pub``
        and so on. With the authority of an earlier call only what is missing is added.
    hosts
        Names and addresses by which clients reach the server.
    nodes
        Number of node keys there are to be.
    valid_days
        Days until the certificates end.

    Raises
    ------
    FedloraError
        When a host is no name or address, the folder's certificate is for others, half of a pair is
        missing, or a file is damaged.
    """
    if not hosts or not all(hosts):
        raise FedloraError("--host is missing; give the name or address that clients dial")
    for host in hosts:
        _alternative(host)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=valid_days)
    authority, key = _authority(out, ends)
    if _absent(out, SERVER, SERVER_KEY):
        _write_server(out, hosts, authority, key, ends)
    _check_hosts(out / SERVER, hosts)
    for node in range(nodes):
        if _absent(out, f"node{node}.pub", f"node{node}"):
            _write_node(out, node)


def _authority(
    out: Path, ends: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Read the folder's authority, or make one."""
    if not _absent(out, AUTHORITY, AUTHORITY_KEY):
        certificate = _read_certificate(out / AUTHORITY)
        try:
            key = serialization.load_pem_private_key((out / AUTHORITY_KEY).read_bytes(), None)
        except (ValueError, TypeError) as error:  # damaged, or encrypted
            raise _unreadable(out / AUTHORITY_KEY, error) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FedloraError(f"{out / AUTHORITY_KEY} is no EC key; choose another --out")
        return certificate, key
    key = ec.generate_private_key(_CURVE)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlora authority")])
    builder = (
        _builder(name, name, key.public_key(), ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(_key_usage(signs=False, certifies=True), True)
    )
    certificate = builder.sign(key, hashes.SHA384())
    _write(out / AUTHORITY, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write_key(out / AUTHORITY_KEY, key)
    return certificate, key


def _write_server(
    out: Path,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    ends: datetime.datetime,
) -> None:
    key = ec.generate_private_key(_CURVE)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlora server")])
    names = [_alternative(host) for host in dict.fromkeys((*hosts, *_LOOPBACK))]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority.subject, key.public_key(), ends)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(_key_usage(signs=True, certifies=False), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(issuer_key, False)
        .sign(authority_key, hashes.SHA384())
    )
    _write(out / SERVER, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write_key(out / SERVER_KEY, key)


def _check_hosts(path: Path, hosts: Sequence[str]) -> None:
    named = (
        _read_certificate(path)
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    for host in hosts:
        if _alternative(host) not in named:
            raise FedloraError(
                f"{path} is not for {host}; remove it and its key, and a new one is made"
            )


def _write_node(out: Path, node: int) -> None:
    """Write a node's key pair in OpenSSH's form, as ``ssh-keygen -t ecdsa -b 384`` would."""
    key = ec.generate_private_key(_CURVE)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    _write(out / f"node{node}", private, 0o600)
    _write(out / f"node{node}.pub", public + f" node{node}\n".encode(), 0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    """Return what all certificates have; they start a day back, for clocks that are late."""
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _key_usage(*, signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise FedloraError(
            f"--host is {host!r:.80}, which is no name or address; write it without scheme and "
            "port, such as fed.example.org (and ä as in xn--4ca.example.org)"
        )
    return x509.DNSName(host)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> FedloraError:
    reason = str(error).partition(".")[0]
    return FedloraError(
        f"{path} cannot be read ({reason}); restore it, or choose another --out for new keys"
    )


def _absent(out: Path, public: str, private: str) -> bool:
    """Tell whether a pair is to be made; half of one is never completed by guessing."""
    there = [(out / name).exists() for name in (public, private)]
    if any(there) and not all(there):
        found, missing = (public, private) if there[0] else (private, public)
        raise FedloraError(
            f"{out} holds {found} without {missing}; restore it, or remove {found} for a new pair"
        )
    return not any(there)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, pem, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that has its mode from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
