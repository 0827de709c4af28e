"""``fedlora generate`` and ``chat`` say in one sentence what they cannot do."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest
from support.served import served_run

from clients.generation.command import chat, generate
from fedlora.commands.serving.serve import ServeOptions, opened
from fedlora.commands.slice import slice_model
from fedlora.errors import FedloraError
from fedlora.launch.keys import write_keys
from fedlora.link.stream import read_known_devices
from fedlora.link.stream.tls import read_identity
from fedlora.observe.serving import ServingMetrics, serving_lines
from fedlora.report import RunFolder
from fedlora.site.history import read_history
from fedlora.site.show import lines
from fedlora.split import Checkpoint
from fedlora.storage import json_line, replace_file


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_run_that_labels_texts_writes_none(fedlora, finished, verb):
    status, said = fedlora(verb, finished, *(["w1"] if verb == "generate" else []))
    assert (status, said.count("\n")) == (2, 1)
    assert "task.kind is 'classification', whose model writes no text; use fedlora infer" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--top-p", "0.5"), "top_p 0.5 would change nothing; set a temperature as well"),
        (("--seed", "-4", "--temperature", "1"), "seed is -4"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--drafts", "some"), "'none', 'prompt', 'history'"),
        (("--client", "9"), "the run has no client '9'"),
        (("--rank", "9"), "--rank 9 exceeds the run's r_max 2"),
    ],
)
def test_an_option_that_means_nothing_is_refused(fedlora, finished, options, expected):
    status, said = fedlora("generate", finished, "w1", *options)
    assert status == 2
    assert expected in said


def test_a_folder_that_is_no_run_is_named(fedlora, tmp_path):
    for folder in (tmp_path / "away", tmp_path):
        status, said = fedlora("generate", folder, "w1")
        assert (status, said.count("\n")) == (2, 1)
        assert str(folder) in said


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """Return a run that writes texts, and a package of it for devices."""
    root = tmp_path_factory.mktemp("chatting")
    run, package = served_run(root), root / "package"
    slice_model(str(run), package, 0, 0, task="", overwrite=False)
    write_keys(root / "certs", ["localhost"], 2)
    return run, package, root / "certs"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "--certs is missing, the folder with server.pem, server.key"),
        (("--certs", "{certs}", "--insecure"), "--insecure and --certs"),
        (("--certs", "{certs}/away"), "is no folder; make it with fedlora certs"),
        (("--insecure", "--host", "0.0.0.0"), "host '0.0.0.0' is not loopback"),
        (("--certs", "{certs}", "--rank", "9"), "--rank 9 exceeds the run's r_max 4"),
        (("--certs", "{certs}", "--idle-s", "nan"), "idle_s is nan"),
        (("--certs", "{certs}", "--stats", "{certs}"), "which is a folder; name a file"),
        (("--certs", "{certs}", "--stats", "{certs}/ca.crt"), "ca.crt exists; replace it with --o"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(fedlora, chatting, options, expected):
    run, _, certs = chatting
    status, said = fedlora("serve", run, *(o.format(certs=certs) for o in options))
    assert (status, said.count("\n")) == (2, 1)
    assert expected in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "give --root-certificates ca.crt and --node-key nodeK"),
        (("--rank", "1", "--insecure"), "--rank is 1, and with --server the server has"),
        (("--server", "host", "--insecure"), "--server is 'host'; write HOST:PORT"),
        (("--server", "http://host:1", "--insecure"), "write HOST:PORT, without a scheme"),
        (("--insecure", "--server", "10.0.0.1:1"), "host '10.0.0.1' is not loopback"),
        (("--insecure", "--node-key", "k"), "--insecure and k exclude each other"),
        (("--root-certificates", "/away", "--node-key", "k"), "/away cannot be read"),
        (("--insecure",), "no connection to 127.0.0.1:1"),
        (("--insecure", "--node-config", "server='other'"), "server in the node configuration is"),
        (
            ("--insecure", "--node-config", "privacy-epsilon=8 model='m'"),
            "privacy-epsilon is 8 in the node configuration, and prompt and text would leave",
        ),
    ],
)
def test_a_server_that_cannot_be_asked_is_refused_in_one_sentence(
    fedlora, chatting, options, expected
):
    if "--server" not in options:
        options = (*options, "--server", "127.0.0.1:1")
    status, said = fedlora("generate", chatting[1], "dog 1?", *options)
    assert (status, said.count("\n")) == (2, 1), said
    assert expected in said


def test_options_of_a_server_mean_nothing_without_one(fedlora, chatting):
    for option in (("--node-key", "k"), ("--insecure",), ("--resume",)):
        status, said = fedlora("generate", chatting[0], "dog 1?", *option)
        assert (status, said.count("\n")) == (2, 1)
        assert f"{option[0]} means nothing without --server" in said


def test_a_device_writes_over_tls_what_both_sides_write_in_one_process(
    chatting, tmp_path, monkeypatch, capsys
):
    """The package holds no block; text, ranks and end tokens are those of the whole run."""
    run, package, certs = chatting
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not any(".layers." in name for name in Checkpoint(package).entries)
    options = ServeOptions(certs=certs)
    identity = read_identity(certs / "server.pem", certs / "server.key")
    keys = {"root_certificates": certs / "ca.crt"}
    with opened(run, options, identity, read_known_devices(certs)) as (listener, usage, _):
        for client in "01":
            capsys.readouterr()
            drawn = {"temperature": 0.8, "seed": 3, "max_new_tokens": 16, "stop": ["zz"]}
            drawn["drafts"] = "none"
            generate(run, "dog 1?", client=client, **drawn)
            expected = capsys.readouterr().out
            for place in (package, run):
                keys |= {"node_key": certs / f"node{client}"}
                address = [f"localhost:{listener.port}"]
                generate(place, "dog 1?", server=address, **keys, **drawn)
                assert capsys.readouterr().out == expected
        assert set(usage.told()["clients"]) == {"0", "1"}
        _check_shown(run, listener.port, usage.told)
        told = list(lines(read_history(tmp_path / ".fedlora" / "states"), (), 9))
        left = sum(own["bits_up"] for own in usage.told()["clients"].values()) // 8
        (texts,) = (line for line in told if "tokens sent" in line)
        assert f"  4: {4 * 75 + 4 * 15} tokens sent; bytes out activations {left:,}" == texts
        with pytest.raises(FedloraError, match="--resume finds no text of fedlora generate"):
            generate(package, None, server=address, resume=True, **keys)
    assert not list((tmp_path / ".fedlora" / "states" / "texts").iterdir())


def _check_shown(run, port, told):
    """What ``fedlora top`` and Prometheus show are the figures of usage."""
    replace_file(RunFolder(run).serving(port), json_line(told()))
    (line,) = serving_lines(RunFolder(run))
    assert re.match(rf"served on port {port}: \d devices, 0 sessions, .* tokens/s", line)
    RunFolder(run).serving(port).unlink()
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    registry.register(ServingMetrics(told))
    text = prometheus.generate_latest(registry).decode()
    tokens = told()["clients"]["1"]["tokens"]
    assert f'fedlora_generation_tokens_total{{client="1"}} {float(tokens)}' in text
    assert 'fedlora_generation_first_token_seconds{quantile="0.95"}' in text


def test_without_keys_a_device_of_this_machine_is_the_client_that_it_says(
    chatting, tmp_path, monkeypatch, capsys
):
    run, package, _ = chatting
    monkeypatch.setenv("HOME", str(tmp_path))
    with opened(run, ServeOptions(insecure=True), None, None) as (listener, _, _):
        for client in (None, "1"):
            capsys.readouterr()
            generate(run, "dog 1?", client=client, max_new_tokens=6)
            expected = capsys.readouterr().out
            server = [f"127.0.0.1:{listener.port}"]
            generate(
                package, "dog 1?", client=client, max_new_tokens=6, server=server, insecure=True
            )
            assert capsys.readouterr().out == expected


def test_a_conversation_goes_on_where_its_device_was_killed(
    chatting, tmp_path, monkeypatch, capsys
):
    run, package, certs = chatting
    monkeypatch.setenv("HOME", str(tmp_path))
    identity = read_identity(certs / "server.pem", certs / "server.key")

    def said(*turns, stops_after=10**9, **options):
        text = "".join(f"{turn}\n" for turn in turns).encode()
        stdin = SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)
        capsys.readouterr()
        write, left = sys.stdout.write, [stops_after]

        def dying(piece):
            left[0] -= len(piece)
            if left[0] < 0:
                raise SystemExit  # as far as what is on disk goes, a kill
            return write(piece)

        with monkeypatch.context() as patched:
            patched.setattr(sys.stdout, "write", dying)
            chat(package, temperature=0.7, max_new_tokens=20, **options)
        return capsys.readouterr().out

    with opened(run, ServeOptions(certs=certs), identity, read_known_devices(certs)) as (port, *_):
        keys = {"root_certificates": certs / "ca.crt", "node_key": certs / "node1"}
        keys |= {"server": [f"localhost:{port.port}"]}
        whole = said("dog 1?", "dog 2?", "", seed=3, **keys).splitlines()
        assert len(whole) >= 2
        with pytest.raises(SystemExit):
            said("dog 1?", seed=3, stops_after=8, **keys)
        assert said("dog 2?", "", seed=None, resume=True, **keys).splitlines() == whole
