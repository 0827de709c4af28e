"""``fedlora doctor --server`` tells apart what can be wrong between a device and a server."""

from __future__ import annotations

import datetime
import email.utils
import http.server
import socket
import ssl
import threading
from pathlib import Path

import pytest

from fedlora.commands.certs import write_certificates
from fedlora.commands.doctor_server import examine_model, examine_server, split_address
from fedlora.errors import FedloraError
from fedlora.launch.guarded import free_port
from fedlora.split import slice_checkpoint

DECODER = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"


class Health(http.server.BaseHTTPRequestHandler):
    late_s = 0.0

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def date_time_string(self, timestamp=None):
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.late_s)
        return email.utils.format_datetime(now, usegmt=True)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    write_certificates(tmp_path / "certs", ["127.0.0.1"], 0)
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certs/server.pem", tmp_path / "certs/server.key")
    serving.socket = context.wrap_socket(serving.socket, server_side=True)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}", tmp_path / "certs" / "ca.crt"
    serving.shutdown()
    serving.server_close()
    Health.late_s = 0.0


def mends(findings) -> dict[str, str]:
    return {finding.what: finding.mend for finding in findings if finding.mend}


def test_a_server_that_serves_needs_no_mending(server):
    findings = list(examine_server(*server))
    assert mends(findings) == {}
    assert {"TLS", "SuperLink", "clock"} <= {finding.what for finding in findings}


def test_another_authority_is_told(server, tmp_path):
    write_certificates(tmp_path / "others", ["127.0.0.1"], 0)
    assert "ca.crt" in mends(examine_server(server[0], tmp_path / "others" / "ca.crt"))["TLS"]


def test_a_certificate_for_another_name_is_told(server, tmp_path, monkeypatch):
    genuine = socket.create_connection

    def local(address, *arguments, **options):
        return genuine(("127.0.0.1", address[1]), *arguments, **options)

    monkeypatch.setattr(socket, "create_connection", local)
    address = server[0].replace("127.0.0.1", "fed.example.org")
    found = mends(examine_server(address, server[1]))
    assert found == {"TLS": "make the certificate with fedlora certs --host fed.example.org"}


def test_a_clock_that_is_off_is_told(server):
    Health.late_s = 300.0
    assert "NTP" in mends(examine_server(*server))["clock"]


def test_a_closed_port_and_an_unknown_name_are_told():
    port = free_port()
    closed = mends(examine_server(f"127.0.0.1:{port}", None))
    assert "flower-superlink" in closed[f"SuperLink 127.0.0.1:{port}"]
    unknown = mends(examine_server("nowhere.invalid", None))
    assert "spelling" in unknown["SuperLink nowhere.invalid:8000"]


def test_a_closed_stream_port_is_no_fault(server):
    assert mends(examine_server(*server, free_port())) == {}


def test_plain_http_is_told(tmp_path):
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        found = mends(examine_server(f"127.0.0.1:{serving.server_port}", None))
    finally:
        serving.shutdown()
        serving.server_close()
    assert "--ssl-certfile" in found["TLS"]


def test_a_package_shows_the_digests_of_the_whole_model(tmp_path):
    slice_checkpoint(DECODER, tmp_path / "package")
    whole = {f.what: f.found for f in examine_model(str(DECODER))}
    package = {f.what: f.found for f in examine_model(str(tmp_path / "package"))}
    digests = ("weights digest", "config digest", "tokenizer digest")
    assert all(whole[name] == package[name] for name in digests)
    assert "edge package" in package["model"]
    assert "model.path" in mends(examine_model(str(tmp_path)))["model"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host", ("host", 8000)),
        ("host:1", ("host", 1)),
        ("::1", ("::1", 8000)),
        ("[::1]:7", ("::1", 7)),
    ],
)
def test_addresses_split(address, expected):
    assert split_address(address) == expected


def test_a_bad_port_is_refused():
    with pytest.raises(FedloraError, match="usable port"):
        split_address("host:x")
