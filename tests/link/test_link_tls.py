"""The certificate of a run."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedlora.errors import FedloraError
from fedlora.link.stream.tls import SERVER_NAME, create_identity, is_loopback, open_channel


def test_certificate_is_p256_starts_a_day_back_and_names_its_hosts() -> None:
    pem = create_identity("fed.example.org", valid_days=3).certificate_pem
    certificate = x509.load_pem_x509_certificate(pem)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    now = datetime.datetime.now(datetime.UTC)
    assert 23 <= (now - certificate.not_valid_before_utc).total_seconds() / 3600 <= 25
    assert 2.9 <= (certificate.not_valid_after_utc - now).total_seconds() / 86400 <= 3
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        SERVER_NAME,
        "localhost",
        "fed.example.org",
    }
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_an_address_as_public_host_becomes_an_address_in_the_certificate() -> None:
    certificate = x509.load_pem_x509_certificate(create_identity("192.0.2.7").certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)


def test_streams_are_opened_again_in_a_run_of_a_year() -> None:
    certificate = x509.load_pem_x509_certificate(create_identity().certificate_pem)
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_after_utc - now > datetime.timedelta(days=366)


def test_each_run_has_a_key_of_its_own_which_repr_hides() -> None:
    first, second = create_identity(), create_identity()
    assert first.private_key_pem != second.private_key_pem
    assert "PRIVATE" not in repr(first)


def test_plain_text_is_for_loopback_only() -> None:
    assert all(
        is_loopback(host) for host in ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")
    )
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.7", "example.org", ""))
    with pytest.raises(FedloraError, match="plain text"):
        open_channel("192.0.2.7:5000", None, [])
