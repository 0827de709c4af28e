"""The gRPC stream between a device and the server, over TLS."""

from fedlora.link.stream.address import address_of, check_listens, dialled
from fedlora.link.stream.backoff import Backoff
from fedlora.link.stream.malloc import keep_freed_memory
from fedlora.link.stream.node_proof import (
    CHALLENGE_BYTES,
    KnownDevice,
    check_proof,
    fingerprint,
    names_host,
    prove,
    read_known_devices,
    read_node_key,
)
from fedlora.link.stream.protocol import (
    CLOSED,
    GENERATION_METHOD,
    GENERATION_SERVICE,
    MAX_HELLO_BYTES,
    METHOD,
    PAD,
    PROBE,
    REFUSED,
    RESUME,
    RESUME_KEY,
    RESUMED,
    SECRET,
    SERVICE,
    TOKEN_KEY,
    channel_options,
    farewell,
    reason_of,
)
from fedlora.link.stream.session_secrets import ResumeSecrets
from fedlora.link.stream.tokens import TokenStore

__all__ = [
    "CHALLENGE_BYTES",
    "CLOSED",
    "GENERATION_METHOD",
    "GENERATION_SERVICE",
    "MAX_HELLO_BYTES",
    "METHOD",
    "PAD",
    "PROBE",
    "REFUSED",
    "RESUME",
    "RESUMED",
    "RESUME_KEY",
    "SECRET",
    "SERVICE",
    "TOKEN_KEY",
    "Backoff",
    "KnownDevice",
    "ResumeSecrets",
    "TokenStore",
    "address_of",
    "channel_options",
    "check_listens",
    "check_proof",
    "dialled",
    "farewell",
    "fingerprint",
    "keep_freed_memory",
    "names_host",
    "prove",
    "read_known_devices",
    "read_node_key",
    "reason_of",
]
