"""The keys of a deployment: usable by TLS and by Flower, and never overwritten."""

from __future__ import annotations

import socket
import ssl
import stat
import threading

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedlora.commands.certs import write_certificates
from fedlora.errors import FedloraError


def handshake(certs, name: str) -> str:
    """Dial a TLS server that holds the certificate, as strictly as OpenSSL can."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certs / "server.pem", certs / "server.key")
    dialling = ssl.create_default_context(cafile=certs / "ca.crt")
    dialling.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            try:
                with serving.wrap_socket(connection, server_side=True):
                    pass
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(server.getsockname(), timeout=5) as plain:
                with dialling.wrap_socket(plain, server_hostname=name) as secured:
                    return str(secured.version())
        finally:
            thread.join()


def test_the_certificate_serves_every_host_and_loopback_and_no_other(tmp_path):
    write_certificates(tmp_path / "certs", ["fed.example.org", "192.0.2.7"], 0)
    for name in ("fed.example.org", "192.0.2.7", "127.0.0.1", "localhost"):
        assert handshake(tmp_path / "certs", name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "certs", "other.example.org")


def test_node_keys_are_openssh_pairs_on_p384(tmp_path):
    write_certificates(tmp_path, ["host"], 2)
    for node in range(2):
        private = load_ssh_private_key((tmp_path / f"node{node}").read_bytes(), None)
        public = load_ssh_public_key((tmp_path / f"node{node}.pub").read_bytes())
        assert private.public_key() == public
        assert public.curve.name == "secp384r1"
    assert (tmp_path / "node0").read_bytes() != (tmp_path / "node1").read_bytes()


def test_private_keys_are_for_their_owner_only(tmp_path):
    write_certificates(tmp_path / "certs", ["host"], 1)
    for name in ("ca.key", "server.key", "node0"):
        assert stat.S_IMODE((tmp_path / "certs" / name).stat().st_mode) == 0o600


def test_a_second_call_adds_nodes_and_keeps_what_is_there(tmp_path):
    write_certificates(tmp_path, ["host"], 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    text = write_certificates(tmp_path, ["host"], 3)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"node1", "node1.pub", "node2", "node2.pub"}
    assert "node2.pub fedlora" in text


def test_half_of_a_pair_is_refused(tmp_path):
    write_certificates(tmp_path, ["host"], 1)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(FedloraError, match=r"ca\.crt without ca\.key"):
        write_certificates(tmp_path, ["host"], 1)


def test_another_host_needs_another_server_certificate(tmp_path):
    write_certificates(tmp_path, ["host"], 0)
    with pytest.raises(FedloraError, match="not for elsewhere"):
        write_certificates(tmp_path, ["elsewhere"], 0)
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
    write_certificates(tmp_path, ["elsewhere"], 0)
