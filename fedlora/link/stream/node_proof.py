"""A device's proof that it holds its node key, to one server and for one connection.

The key pairs are those of ``fedlora certs``, by which Flower's SuperLink knows a device. The server
draws a challenge for each connection; the device signs it together with the name that it dialled
and whose certificate it has checked. So a proof is of no use on another connection, nor to a server
that would hand it on to a second one.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)

from fedlora.errors import FedloraError, ProtocolError

CHALLENGE_BYTES = 32
_PURPOSE = b"fedlora generation 1\0"
_SIGNED = ec.ECDSA(hashes.SHA384())
_PUBLIC = re.compile(r"node(0|[1-9]\d{0,8})\.pub")
_NEW_KEY = "copy this device's key anew from where fedlora certs wrote it"


@dataclass(frozen=True)
class KnownDevice:
    """A device whose public key a server has.

    Attributes
    ----------
    client
        Its client number, from the name of the key's file.
    key
        The public key.
    """

    client: str
    key: ec.EllipticCurvePublicKey


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a device's private key.

    Raises
    ------
    FedloraError
        When the file holds none that ``fedlora certs`` would write.
    """
    try:
        data = path.read_bytes()
        if data.startswith((b"ecdsa-", b"ssh-")):
            raise FedloraError(f"{path} is a public key; name the private one, without .pub")
        key = load_ssh_private_key(data, None)
    except OSError as error:
        raise FedloraError(f"{path} cannot be read ({error.strerror}); {_NEW_KEY}") from None
    except TypeError:
        raise FedloraError(
            f"{path} is encrypted; take its passphrase off with ssh-keygen -p -f {path}"
        ) from None
    except FedloraError:
        raise
    except Exception as error:  # cryptography has no common ancestor for what it raises here
        reason = str(error).partition(".")[0]
        raise FedloraError(f"{path} holds no key ({reason}); {_NEW_KEY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedloraError(f"{path} holds a key of the kind {type(key).__name__}; {_NEW_KEY}")
    return key


def read_known_devices(folder: Path) -> Mapping[str, KnownDevice]:
    """Return the devices whose public keys lie in a folder as ``nodeK.pub``, by fingerprint.

    Raises
    ------
    FedloraError
        When there is none, one cannot be read, or two clients have one key.
    """
    found: dict[str, KnownDevice] = {}
    for path in sorted(folder.iterdir()):
        named = _PUBLIC.fullmatch(path.name)
        if named is None:
            continue
        try:
            key = load_ssh_public_key(path.read_bytes())
        except Exception as error:  # as above
            reason = str(error).partition(".")[0]
            raise FedloraError(
                f"{path} holds no public key ({reason}); copy it anew from where fedlora certs "
                "wrote it"
            ) from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise FedloraError(f"{path} holds a key of another kind; make one with fedlora certs")
        print_ = fingerprint(key)
        if print_ in found:
            raise FedloraError(
                f"{path} holds the key of client {found[print_].client}, too; give each device "
                "its own"
            )
        found[print_] = KnownDevice(named[1], key)
    if not found:
        raise FedloraError(
            f"{folder} holds no nodeK.pub, the public key of a device; make keys with fedlora "
            "certs, and copy their .pub files there"
        )
    return found


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return what a key is called, as ``ssh-keygen -lf`` shows it."""
    digest = ssh_key_fingerprint(key, hashes.SHA256())
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def prove(key: ec.EllipticCurvePrivateKey, host: str, challenge: bytes) -> str:
    """Return the proof for a challenge of the server that was dialled as ``host``."""
    return base64.b64encode(key.sign(_message(host, challenge), _SIGNED)).decode()


def check_proof(key: ec.EllipticCurvePublicKey, host: str, challenge: bytes, proof: str) -> None:
    """Check that whoever made a proof holds a key.

    Raises
    ------
    ProtocolError
        When they do not, or for another challenge or host.
    """
    try:
        signature = base64.b64decode(proof, validate=True)
        key.verify(signature, _message(host, challenge), _SIGNED)
    except (InvalidSignature, binascii.Error, ValueError):
        raise ProtocolError(
            "the proof is not made with the node key for this connection; name the device's own "
            "node key"
        ) from None


def names_host(certificate_pem: bytes, host: str) -> bool:
    """Tell whether a certificate is for a name or address that a client dialled."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    bare = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(bare) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        known = [n.rstrip(".").lower() for n in names.get_values_for_type(x509.DNSName)]
        return bare in known or f"*.{bare.partition('.')[2]}" in known


def _message(host: str, challenge: bytes) -> bytes:
    return _PURPOSE + challenge + host.encode()
