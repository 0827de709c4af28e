"""The in-process link keeps the contract of every link."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.link_peers import echo

from fedlora.errors import ClientLost, ProtocolError
from fedlora.link import Frame, LocalLink, edge_executor, encode_frame


def test_a_reply_is_what_the_handler_made_and_its_bytes_are_counted() -> None:
    request = Frame("step", "a", 1, {"x": 1}, {"z": torch.arange(4.0)})
    with edge_executor(1) as executor:
        link = LocalLink("a", echo, executor)
        link.send(request)
        reply = link.receive(5.0)
    assert torch.equal(reply.tensors["z"], request.tensors["z"])
    assert link.wire_bytes_down == len(encode_frame(request))
    assert link.wire_bytes_up == len(encode_frame(reply))


def test_edge_threads_compute_with_one_torch_thread() -> None:
    with edge_executor(2) as executor:
        assert {executor.submit(torch.get_num_threads).result() for _ in range(8)} == {1}


def test_a_client_that_is_late_or_closed_or_unasked_is_lost() -> None:
    gate = threading.Event()

    def slow(frame: Frame) -> Frame:
        gate.wait(10.0)
        return echo(frame)

    with ThreadPoolExecutor(1) as executor:
        link = LocalLink("a", slow, executor)
        with pytest.raises(ClientLost, match="asked nothing"):
            link.receive(0.1)
        link.send(Frame("step", "a", 1))
        with pytest.raises(ClientLost, match=r"no reply in 0\.05 s"):
            link.receive(0.05)
        gate.set()
        link.close("too slow")
        with pytest.raises(ClientLost, match="too slow"):
            link.send(Frame("step", "a", 2))


@pytest.mark.parametrize("forge", [Frame("x", "a", 2), Frame("x", "b", 1)])
def test_an_answer_to_another_request_is_refused(forge: Frame) -> None:
    with ThreadPoolExecutor(1) as executor:
        link = LocalLink("a", lambda frame: forge, executor)
        link.send(Frame("step", "a", 1))
        with pytest.raises(ProtocolError, match="answered request"):
            link.receive(5.0)


def test_a_frame_over_the_limit_is_refused() -> None:
    with ThreadPoolExecutor(1) as executor:
        link = LocalLink("a", lambda f: Frame("x", "a", 1, {"pad": "p" * 2000}), executor, 1000)
        link.send(Frame("step", "a", 1))
        with pytest.raises(ProtocolError, match="exceeds the limit"):
            link.receive(5.0)
