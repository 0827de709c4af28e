"""Who may ask for generation: a device is the client whose key it holds, and of the same run."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.config import LinkConfig
from fedlora.errors import ProtocolError, shown
from fedlora.geometry import Geometry
from fedlora.link import Frame, codec_profile, messages as m
from fedlora.link.stream import KnownDevice, check_proof, names_host

LOCAL = "local"
"""The client of a device that says no number, where nobody has a key."""

_FIELDS = frozenset(("key", "proof", "host", "cut", "activation_codec", "representation_codec"))
_LONGEST = 512
_DIGITS = 9


class Admission:
    """Decides which client a device is.

    Parameters
    ----------
    link
        The run's codecs.
    geometry
        The run's cut.
    known
        Devices by the fingerprint of their public keys; None, on loopback alone, takes a device for
        the client that it says.
    certificate_pem
        The server's, whose names a device may have dialled; None without keys.
    """

    def __init__(
        self,
        link: LinkConfig,
        geometry: Geometry,
        known: Mapping[str, KnownDevice] | None,
        certificate_pem: bytes | None,
    ) -> None:
        self._agreed = agreed(link, geometry)
        self._known, self._certificate_pem = known, certificate_pem

    def admit(self, hello: Frame, challenge: bytes) -> str:
        """Return the client that a device is.

        Parameters
        ----------
        hello
            What it said first.
        challenge
            What it was asked to sign.

        Raises
        ------
        ProtocolError
            When it says something else than a hello, its key is not known or not proved, or it
            would not understand what is sent.
        """
        fields = hello.fields
        right = hello.kind == m.GEN_HELLO and set(fields) == _FIELDS and not hello.tensors
        if not right or not all(type(v) is str and len(v) <= _LONGEST for v in fields.values()):
            raise ProtocolError(
                f"a stream began with {shown(hello.kind)} of {shown(sorted(fields))}; begin with "
                f"{m.GEN_HELLO} of one fedlora release"
            )
        client = self._client(hello, challenge)
        for name, (own, mend) in self._agreed.items():
            if fields[name] != own:
                what = name.replace("_", " ")
                raise ProtocolError(
                    f"the client's {what} is {shown(fields[name])}, the server's {shown(own)}; "
                    f"{mend}"
                )
        return client

    def _client(self, hello: Frame, challenge: bytes) -> str:
        if self._known is None:
            if hello.client and not (hello.client.isascii() and hello.client.isdecimal()):
                raise ProtocolError(
                    f"the client is {shown(hello.client)}; say the number of one, or nothing"
                )
            return hello.client[:_DIGITS] or LOCAL
        fields = hello.fields
        device = self._known.get(fields["key"])
        if device is None:
            raise ProtocolError(
                f"the node key {shown(fields['key'])} is of no device that this server knows; copy "
                "its .pub file as nodeK.pub into the server's --certs folder and start it again"
            )
        check_proof(device.key, fields["host"], challenge, fields["proof"])
        if not names_host(self._certificate_pem or b"", fields["host"]):
            raise ProtocolError(
                f"the proof is for {shown(fields['host'])}, which is no name of this server; dial "
                "a name that its certificate has"
            )
        return device.client


def agreed(link: LinkConfig, geometry: Geometry) -> dict[str, tuple[str, str]]:
    """Return what a device and the server must have alike beside the model: value and mend.

    Parameters
    ----------
    link
        Codecs.
    geometry
        Cut and final stage.
    """
    cut = geometry.cut
    final = " and the final norm" if geometry.server_final else ""
    return {
        "cut": (
            f"blocks {cut.start} to {cut.stop} of {cut.blocks}{final} on the server",
            "make the device's package anew with fedlora slice RUN",
        ),
        **{
            f"{payload}_codec": (
                codec_profile(**link.codec(payload, tokens=False)),
                f"give both sides one run's link.{payload}",
            )
            for payload in ("activation", "representation")
        },
    }
