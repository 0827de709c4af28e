"""The handshake: both halves must speak one protocol and be of one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedlora.errors import ProtocolError

PROTOCOL = 2


@dataclass(frozen=True)
class Identity:
    """What client and server must agree on before the first tensor.

    Attributes
    ----------
    protocol
        Version of the messages.
    config_digest, weights_digest, tokenizer_digest
        SHA-256 of the model's configuration, its weight index and its tokenizer.
    dtype
        Precision of the frozen weights, and the form in which the server keeps its own.
    """

    protocol: int
    config_digest: str
    weights_digest: str
    tokenizer_digest: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


_MEND = {
    "protocol": "install the same fedlora release on both sides",
    "config_digest": "give both sides the same config.json",
    "weights_digest": "give both sides the same checkpoint",
    "tokenizer_digest": "give both sides the same tokenizer",
    "dtype": "set model.dtype and model.weights alike on both sides",
}


def check_identity(server: Identity, hello: Mapping[str, Any]) -> None:
    """Compare a client's ``hello`` with the server's identity.

    Raises
    ------
    ProtocolError
        When a field is missing or differs; both values are named.
    """
    for name, own in server.to_dict().items():
        theirs = hello.get(name)
        if theirs != own or type(theirs) is not type(own):
            raise ProtocolError(
                f"the client's {name} is {str(theirs)[:16]}, the server's is {str(own)[:16]}; "
                f"{_MEND[name]}"
            )
