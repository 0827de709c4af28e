"""Generation over a wire: who may ask, what breaks, and what hostile frames change."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from support.generation import Generation, written
from support.patience import patient
from support.relay import Relay
from support.served import Served, served, served_run

from clients.generation import Credentials, Sampler, Sampling, ServerConnection
from clients.owner import Door, OwnerTerms
from fedlora.commands.serving.serve import ServeOptions, opened
from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.generation.bounds import CacheBounds, GenerationRefused
from fedlora.generation.listener import MOST_OF_ONE, MOST_STRANGERS
from fedlora.launch.keys import write_keys
from fedlora.link import Frame, encode_frame, messages as m
from fedlora.link.stream import (
    check_proof,
    fingerprint,
    names_host,
    prove,
    read_known_devices,
    read_node_key,
)
from fedlora.link.stream.client.asking import AskingStream
from fedlora.registry import use_python_path

GREEDY = Sampling()
PROMPT = [5, 9, 33, 7, 61, 12, 80, 44, 3, 21]
RANKS = (4, 1, 2)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Generation:
    bounds = CacheBounds(tokens_in_all=4096, tokens_per_client=256, page_tokens=16)
    return Generation(tmp_path_factory.mktemp("gpt2"), "gpt2", RANKS, bounds=bounds)


@pytest.fixture(scope="module")
def certs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "certs"
    write_keys(folder, ["localhost"], len(RANKS))
    return folder


@pytest.fixture
def server(split, certs) -> Iterator[Served]:
    with served(split, certs) as found:
        yield found


def texts_of(split: Generation, most: int) -> dict[str, list[int]]:
    return {client: written(split.unsplit(client), PROMPT, most) for client in split.ranks}


def test_every_device_is_the_client_of_its_key_and_writes_with_that_clients_ranks(split, server):
    expected, found, errors = texts_of(split, 12), {}, []
    connections = {client: server.connection(client) for client in split.ranks}

    def write(client: str) -> None:
        try:
            writer = server.writer(connections[client], longest_draft=2)
            found[client] = list(writer.tokens(PROMPT, Sampler(GREEDY), 12))
            writer.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(client,)) for client in split.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patient(60))
    assert not errors
    assert found == expected
    assert len({tuple(text) for text in expected.values()}) == 3
    assert {client: way.client for client, way in connections.items()} == {c: c for c in "012"}
    for way in connections.values():
        way.close()
    told = server.usage.told()
    assert told["totals"]["tokens"] >= 36
    assert told["sessions"] == 0
    width, prompt = split.engine.geometry.activation_width, len(PROMPT)
    own = told["clients"]["1"]
    assert own["prompt_tokens"] == prompt
    # A token is 32 bits a number each way: the prompt's, and one for each exchange after it.
    assert own["bits_up"] >= 32 * width * (prompt + 11)
    assert own["bits_down"] >= 32 * width * 12
    assert told["a_token"]["energy_joules"] > 0
    json.dumps(told)


def test_a_key_that_is_not_known_or_not_held_opens_nothing(split, server, tmp_path):
    write_keys(tmp_path / "others", ["localhost"], 1)
    stranger = read_node_key(tmp_path / "others" / "node0")
    way = server.connection("0")
    way._credentials = replace(way._credentials, key=stranger)
    with pytest.raises(ClientLost, match=r"is of no device that this server knows; copy its \.pub"):
        way.connect()

    class Borrowed:  # says another's public key and signs with its own
        def public_key(self) -> ec.EllipticCurvePublicKey:
            return read_node_key(server.certs / "node1").public_key()

        def sign(self, *arguments: object) -> bytes:
            return stranger.sign(*arguments)

    way._credentials = replace(way._credentials, key=Borrowed())
    with pytest.raises(ClientLost, match="not made with the node key for this connection"):
        way.connect()
    assert server.usage.told()["streams"] == 0


def test_a_proof_is_of_no_use_to_another_server_or_another_time(certs):
    key = read_node_key(certs / "node0")
    proof = prove(key, "localhost", b"a" * 32)
    check_proof(key.public_key(), "localhost", b"a" * 32, proof)
    for host, challenge in (("other", b"a" * 32), ("localhost", b"b" * 32)):
        with pytest.raises(ProtocolError, match="for this connection"):
            check_proof(key.public_key(), host, challenge, proof)
    pem = (certs / "server.pem").read_bytes()
    assert names_host(pem, "localhost") and names_host(pem, "127.0.0.1")
    assert not names_host(pem, "evil.example") and not names_host(pem, "127.0.0.2")
    with pytest.raises(ProtocolError, match="for this connection"):
        check_proof(key.public_key(), "localhost", b"a" * 32, "no base64!")


def test_a_proof_that_a_second_server_hands_on_is_refused(split, server):
    """A server that a device dialled as another name gets a proof for that name alone."""
    way, key = server.connection("0"), read_node_key(server.certs / "node0")
    credentials = way._credentials
    assert credentials is not None
    stream = AskingStream(server.address, credentials.authority_pem, 1 << 20)
    challenge = bytes.fromhex(stream.first().fields["challenge"])
    fields = {
        **{"key": fingerprint(key.public_key()), "proof": prove(key, "evil.example", challenge)},
        **{"host": "evil.example", **way._agreed},
    }
    answer = stream.ask(Frame(m.GEN_HELLO, fields=fields))
    assert answer.kind == m.GEN_REFUSED
    assert "which is no name of this server" in answer.fields["reason"]
    stream.close()


def test_what_differs_is_refused_with_both_values_and_the_mend(split, server):
    link, geometry = split.scenario.link, split.engine.geometry
    cases = [
        ({"link": replace(link, activation="int8")}, "'int8', the server's 'fp32'; give both"),
        ({"link": replace(link, representation="bf16")}, "client's representation codec is 'bf16'"),
        ({"geometry": replace(geometry, server_final=True)}, "and the final norm on the server'"),
        ({"adapter": "f" * 64}, "this package is for ffffffffffff; make it anew with fedlora"),
        ({"claimed": "2"}, "calls this device client 1, and it is client 2"),
    ]
    for changed, match in cases:
        options = {"link": link, "geometry": geometry, **changed}
        given = {name: options.pop(name) for name in ("link", "geometry")}
        credentials = server.connection("1")._credentials
        way = ServerConnection(
            *((server.address,), credentials, Door(OwnerTerms(deployed=True))),
            *given.values(),
            **options,
        )
        with pytest.raises(ClientLost, match=match):
            way.connect()
    way = server.connection("1")
    writer = server.writer(way)
    writer.row._identity = replace(split.identity, weights_digest="0" * 64)
    with pytest.raises(FedloraError, match="weights_digest is 0000000000000000, the server's is"):
        list(writer.tokens(PROMPT, Sampler(GREEDY), 2))
    way.close()


def test_a_closed_port_and_a_server_of_another_kind_are_one_sentence(server, split, certs):
    with pytest.raises(FedloraError, match="set --port to a free port"):
        Served(split, certs, server.listener.port)
    with Relay(1) as relay:
        closed = relay.port
    with pytest.raises(ClientLost, match=rf"no connection to localhost:{closed} .*fedlora serve"):
        server.connection("0", f"localhost:{closed}").connect()
    way = server.connection("0", f"localhost:{closed}", server.address)
    way.connect()  # the second one answers
    assert way.client == "0"
    way.close()
    way = server.connection("0")
    assert isinstance(way._credentials, Credentials)
    other = (certs.parent / "foreign") / "ca.crt"
    write_keys(other.parent, ["localhost"], 0)
    way._credentials = replace(way._credentials, authority_pem=other.read_bytes())
    with pytest.raises(ClientLost, match="its certificate is of the authority given here"):
        way.connect()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, top_p=0.9, seed=4)])
def test_a_text_goes_on_identically_when_links_and_servers_are_lost(split, certs, sampling):
    with served(split, certs) as first, served(split, certs) as second:
        plain = first.connection("1")
        expected = list(first.writer(plain).tokens(PROMPT, Sampler(sampling), 24))
        plain.close()
        with Relay(first.listener.port) as relay:
            way = first.connection("1", f"localhost:{relay.port}", second.address)
            writer, found = first.writer(way, longest_draft=2), []
            for place, token in enumerate(writer.tokens(PROMPT, Sampler(sampling), 24)):
                found.append(token)
                if place == 5:
                    relay.reset()  # the link
                if place == 12:
                    first.listener.stop(0.0)  # the server, for good
                    relay.refusing = True
            writer.close()
            way.close()
        assert found == expected
        assert way.breaks == 2
        assert second.usage.told()["totals"]["tokens"] > 0
    if sampling is GREEDY:
        assert found == written(split.unsplit("1"), PROMPT, 24)


def test_a_device_that_leaves_gives_back_all_that_it_held(split, server):
    way = server.connection("2")
    writer = server.writer(way)
    next(iter(writer.tokens(PROMPT, Sampler(GREEDY), 4)))
    assert split.server.sessions.granted_tokens > 0
    way.close()  # without a word
    waited = threading.Event()
    for _ in range(200):
        if len(split.server.sessions) == 0:
            break
        waited.wait(patient(0.05))
    assert split.server.sessions.granted_tokens == 0
    assert server.usage.told()["streams"] == 0


def test_a_server_that_nobody_asks_for_its_speed_remembers_the_latest_tokens_alone(server):
    """As where the file of figures cannot be written any more."""
    now = [0.0]
    server.usage._clock = lambda: now[0]
    writer = server.writer(server.connection("1"))
    for second, _ in enumerate(writer.tokens(PROMPT, Sampler(GREEDY), 30)):
        now[0] = float(second)
    assert 10 <= len(server.usage._recent) <= 12
    writer.close()


def test_a_client_that_the_runs_channel_has_no_link_for_writes_all_the_same(split, server, caplog):
    """As one that took no part, where links are recorded by client; it has no air time."""

    def has_none(*_: object) -> None:
        raise FedloraError("trace t.csv has no rows for client 2; add them")

    assert server.usage.told()["totals"]["air_seconds"] == 0
    server.usage._air.book = has_none
    way = server.connection("2")
    writer = server.writer(way)
    assert list(writer.tokens(PROMPT, Sampler(GREEDY), 6)) == texts_of(split, 6)["2"]
    writer.close()
    told = server.usage.told()
    assert told["totals"]["air_seconds"] is told["a_token"]["energy_joules"] is None
    assert way.breaks == 0 and told["totals"]["bits_up"] > 0
    said = [text for text in caplog.messages if "has no rows for client 2" in text]
    assert len(said) == 1


def test_a_run_is_served_with_what_lies_in_its_python_path(tmp_path):
    """A channel of one's own counts here, as in the run; no other key leads into the folder."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "channel_of_a_run.py").write_text(
        "from fedlora.channel.models.awgn import AwgnChannel\n\n\n"
        "class Mine(AwgnChannel):\n    pass\n"
    )
    run = served_run(
        tmp_path, "channel.model=channel_of_a_run:Mine", f"python_path={plugins}", ranks={"0": 2}
    )
    with opened(run, ServeOptions(insecure=True), None, None) as (_, usage, _):
        assert usage.told()["totals"]["air_seconds"] == 0
    shutil.rmtree(plugins)
    said = "python_path is .*plugins', but there is no such folder"
    with pytest.raises(FedloraError, match=said), opened(run, ServeOptions(), None, None):
        pass
    use_python_path(str(plugins), needed=False)


def hostile_frames(split: Generation, rng: random.Random) -> Iterator[bytes]:
    """Yield what a device may send that knows the protocol and means no good."""
    width = split.engine.geometry.activation_width
    odd = [None, True, -1, 0, 1 << 70, 1.5, "x", [], {}, "s" * 9000]

    def activation(kind: int) -> dict[str, torch.Tensor]:
        x = torch.randn(2, width)
        return [
            {"activation": x},
            {"activation": torch.randn(rng.randint(0, 5), width)},
            {"activation": torch.full((2, width), torch.nan)},
            {"activation": torch.full((2, width), torch.inf)},
            {"activation": torch.full((2, width), 3e38)},
            {"activation": torch.randn(2, width + 1)},
            {"activation": torch.randn(2, width).double()},
            {"activation": torch.zeros(2, width, dtype=torch.int64)},
            {"activation": x, "more": x.clone()},
            {"activation.int8": torch.zeros(2, width, dtype=torch.int8)},
            {},
        ][kind]

    while True:
        kind = rng.choice((m.GEN_OPEN, m.GEN_EXTEND, m.GEN_CLOSE, m.STEP, m.GEN_HELLO, "", "é"))
        fields: dict[str, object] = {"session": rng.choice(["0" * 32, *odd])}
        if kind == m.GEN_EXTEND:
            fields |= {name: rng.choice([1, 2, *odd]) for name in ("position", "tokens", "last")}
            if rng.random() < 0.6:
                fields |= {"session": "0" * 32, "position": 0, "tokens": 2, "last": 1}
        elif kind == m.GEN_OPEN:
            fields = {**split.identity.to_dict(), "adapter": rng.choice(["", *odd])}
        if rng.random() < 0.1:
            fields[rng.choice(["more", "tokens"])] = rng.choice(odd)
        frame = Frame(kind, "0", rng.randint(0, 9), fields, activation(rng.randrange(11)))
        data = encode_frame(frame)
        if rng.random() < 0.03:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        yield data[: rng.randrange(len(data))] if rng.random() < 0.01 else data


def test_a_client_has_so_many_streams_and_an_idle_one_makes_place(server, monkeypatch):
    ways = [server.connection("0") for _ in range(MOST_OF_ONE + 1)]
    for way in ways[:-1]:
        way.connect()
    with pytest.raises(ClientLost, match="client 0 uses 8 streams at once, of 8; end one"):
        ways[-1].connect()
    monkeypatch.setattr("fedlora.generation.listener.IDLE_S", 0.0)
    ways[-1].connect()
    assert server.usage.told()["streams"] == MOST_OF_ONE
    writer = server.writer(ways[0])  # the idlest was ended; it is dialled again unseen
    assert len(list(writer.tokens(PROMPT, Sampler(GREEDY), 2))) == 2
    for way in ways:
        way.close()


def test_a_thousand_hostile_frames_change_nobodys_text(split, server):
    """Client 0 is hostile, with the right key and sessions of its own; 1 and 2 write meanwhile."""
    expected, rng = texts_of(split, 12), random.Random(3)
    over, found = threading.Event(), {"1": [], "2": []}

    def honest(client: str) -> None:
        way = server.connection(client, give_up_s=0.0)
        writer = server.writer(way, longest_draft=2)
        while True:
            found[client].append(list(writer.tokens(PROMPT, Sampler(GREEDY), 12)))
            if over.wait(0.5):
                break
        assert way.breaks == 0
        way.close()

    threads = [threading.Thread(target=honest, args=(c,), daemon=True) for c in found]
    for thread in threads:
        thread.start()
    answered = {"refused": 0, "dropped": 0, "taken": 0}
    way, session = server.connection("0"), ""
    for number, data in enumerate(itertools.islice(hostile_frames(split, rng), 1000)):
        if way._stream is None:
            way.connect()
            assert way._stream is not None
            opened = way._stream.ask(
                Frame(m.GEN_OPEN, "0", 0, {**split.identity.to_dict(), "adapter": ""})
            )
            session = opened.fields["session"]
        stream = way._stream
        own = session if number % 2 == 0 else "0" * 32
        stream._outgoing.put(data.replace(b"0" * 32, own.encode()))
        try:
            kind = stream._next().kind
            answered["refused" if kind == m.GEN_REFUSED else "taken"] += 1
            if kind == m.GEN_CLOSED:
                way.close()
        except (ProtocolError, ClientLost):
            answered["dropped"] += 1
            way.close()
    way.close()
    over.set()
    for thread in threads:
        thread.join(patient(60))
    assert sum(answered.values()) == 1000
    assert min(answered.values()) > 9, answered
    for client, texts in found.items():
        assert texts and all(text == expected[client] for text in texts)


@pytest.mark.slow
def test_sixty_four_clients_at_once_stay_within_the_bound(split, tmp_path):
    """Each has room for its own text and no more; nobody is refused, and no page is lost."""
    ranks = [1 + n % 4 for n in range(64)]
    bounds = CacheBounds(tokens_in_all=64 * 16, tokens_per_client=16, page_tokens=16)
    crowd = Generation(split.folder, "", ranks, bounds=bounds)
    sessions, texts, over = crowd.server.sessions, {}, threading.Event()
    most = {"tokens": 0, "bytes": 0}
    page = 2 * 32 * 4 * crowd.checkpoint.size("n_layer")  # bytes of a token's keys and values

    def watch() -> None:
        while not over.wait(0.001):
            most["tokens"] = max(most["tokens"], sessions.granted_tokens)
            most["bytes"] = max(most["bytes"], sessions.held_bytes)

    with served(crowd, tmp_path / "certs") as server:
        ways = {client: server.connection(client) for client in crowd.ranks}
        writers = {client: server.writer(way) for client, way in ways.items()}
        together = threading.Barrier(64)

        def write(client: str) -> None:
            together.wait(patient(60))
            texts[client] = list(writers[client].tokens(PROMPT, Sampler(GREEDY), 6))

        watching = threading.Thread(target=watch)
        watching.start()
        threads = [threading.Thread(target=write, args=(c,), daemon=True) for c in crowd.ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patient(60))
        over.set()
        watching.join()
        assert len(texts) == 64 and len(sessions) == 64
        assert most["tokens"] == bounds.tokens_in_all
        assert 0 < most["bytes"] <= page * bounds.tokens_in_all
        with pytest.raises(GenerationRefused, match="would hold 32 tokens, of 16"):
            list(writers["5"].tokens([*PROMPT, *PROMPT], Sampler(GREEDY), 2))
        for way in ways.values():
            way.close()
    for client in ("0", "1", "2", "3"):
        alike = {tuple(texts[c]) for c in texts if ranks[int(c)] == ranks[int(client)]}
        assert alike == {tuple(written(crowd.unsplit(client), PROMPT, 6))}


def test_strangers_are_refused_unread_and_nobody_waits_for_them(split, server):
    credentials = server.connection("0")._credentials
    assert credentials is not None
    said = [
        encode_frame(Frame(m.GEN_OPEN, "0", 0, {**split.identity.to_dict(), "adapter": ""})),
        encode_frame(Frame(m.GEN_HELLO, "0", 0, {"key": "x" * 1000})),
        encode_frame(Frame(m.GEN_HELLO, "0", 0, {})),
        b"",
        b"FDLR" + bytes(60),
        bytes(1 << 17),
    ]
    for data in said * 5:
        stream = AskingStream(server.address, credentials.authority_pem, 1 << 20)
        assert stream.first().kind == m.GEN_CHALLENGE
        stream._outgoing.put(data)
        assert stream._next().kind == m.GEN_REFUSED
        with pytest.raises(ClientLost):
            stream._next()
        stream.close()
    silent = [AskingStream(server.address, credentials.authority_pem, 1 << 20) for _ in range(70)]
    for stream in silent:
        stream.first()
    way = server.connection("1")
    writer = server.writer(way)
    assert list(writer.tokens(PROMPT, Sampler(GREEDY), 4)) == texts_of(split, 4)["1"]
    assert len(server.listener._strangers) <= MOST_STRANGERS
    way.close()
    for stream in silent:
        stream.close()


def test_keys_that_cannot_serve_are_named(tmp_path, certs):
    with pytest.raises(FedloraError, match=r"holds no nodeK\.pub"):
        read_known_devices(tmp_path)
    (tmp_path / "node0.pub").write_bytes((certs / "node0.pub").read_bytes())
    (tmp_path / "node4.pub").write_bytes((certs / "node0.pub").read_bytes())
    with pytest.raises(FedloraError, match="holds the key of client 0, too"):
        read_known_devices(tmp_path)
    (tmp_path / "node4.pub").write_text("nothing")
    with pytest.raises(FedloraError, match=r"node4\.pub holds no public key"):
        read_known_devices(tmp_path)
    with pytest.raises(FedloraError, match="is a public key; name the private one"):
        read_node_key(certs / "node0.pub")
    with pytest.raises(FedloraError, match="holds no key"):
        read_node_key(certs / "server.pem")
    with pytest.raises(FedloraError, match="cannot be read"):
        read_node_key(tmp_path / "away")


def test_a_draw_takes_as_much_chance_whatever_it_gives(split):
    drawn = Sampler(Sampling(temperature=0.7, top_k=5, seed=9))
    logits = torch.randn(30, 101, generator=torch.Generator().manual_seed(1)) * 4
    expected = [drawn.pick([1], scores) for scores in logits]
    for place in (0, 7, 29):
        again = Sampler(Sampling(temperature=0.7, top_k=5, seed=9))
        again.skip(place, 101)
        assert [again.pick([1], scores) for scores in logits[place:]] == expected[place:]
        assert again.drawn == 30
