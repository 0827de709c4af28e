"""A process that was ended from outside ends the run at once, with a sentence that says so."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import ray

from fedlora.commands.run import follow_simulation
from fedlora.config import Scenario, scenario_from_toml, scenario_to_toml
from fedlora.errors import ClientLost, FedloraError, printable
from fedlora.launch import killed
from fedlora.launch.killed import Memory, ended, ended_by_ray, memory
from fedlora.launch.simulation import FlowerSimulation
from fedlora.link import ClientLink, Step
from fedlora.report import RunFolder
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.member import Member
from fedlora.server.flower import edge_hosts, questions, sessions as sessions_module
from fedlora.server.flower.edge_hosts import EdgeHosts
from fedlora.server.flower.nodes import Node
from fedlora.server.flower.questions import Questions
from fedlora.server.flower.sessions import Places, Sessions
from fedlora.server.run import ServerRun

GIB = 1 << 30
NODES = [Node(id=10 + n, client=n, simulated=True) for n in range(3)]
DIED = """The actor died unexpectedly before finishing this task.
	class_name: ClientAppActor
	pid: 10020
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) ..."""
MONITOR = """1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 192.0.2.2, ID: 8f20) was 22.50GB / 23.59GB (0.953), which exceeds the memory usage threshold \
of 0.950000; Object store memory usage: [- objects spillable: 0; ..."""
OF_MONITOR = "22.50GB / 23.59GB (0.953), which exceeds the memory usage threshold of 0.950000"


def tiny(*sections: str) -> Scenario:
    model = '[model]\npath = "package:simulations/quickstart/decoder"\n[federation]\nclients = 3\n'
    return scenario_from_toml(model + "\n".join(sections))


@pytest.mark.parametrize(
    ("controllers", "names", "events"),
    [
        ("", ("memory.max", "memory.peak"), "memory.events"),
        ("memory", ("memory.limit_in_bytes", "memory.max_usage_in_bytes"), "memory.oom_control"),
    ],
)
def test_the_memory_is_that_of_the_innermost_control_group_with_a_limit(
    tmp_path, controllers, names, events
):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"7:cpuset:/x\n4:{controllers}:/pod/box\n")
    pod = tmp_path / "sys/fs/cgroup" / controllers / "pod"
    (pod / "box").mkdir(parents=True)
    (pod / "box" / names[0]).write_text("max\n" if not controllers else f"{2**63 - 4096}\n")
    assert memory(tmp_path).whose == "the machine"
    (pod / names[0]).write_text(f"{4 * GIB}\n")
    (pod / names[1]).write_text(f"{3 * GIB}\n")
    (pod / events).write_text("oom_kill_disable 0\noom 9\noom_kill 2\n")
    assert memory(tmp_path) == Memory("its control group", 4 * GIB, 3 * GIB, 2)


def test_an_end_without_a_word_is_told_with_the_memory_and_who_was_ended_for_it(monkeypatch):
    now = Memory("its control group", 4 * GIB, 4 * GIB, 3)
    monkeypatch.setattr(killed, "memory", lambda: now)
    told = ended("the server's process 7", Memory("its control group", 4 * GIB, GIB, 2))
    assert told.startswith("the server's process 7 was ended without a word, as by signal 9")
    assert "memory ran out: its control group has 4.0 GiB, 4.0 GiB are taken" in told
    assert "the kernel has ended 1 for memory since the run began" in told
    assert all(key in told for key in ("compute.edge_hosts", "train.batch_size", "model.dtype"))
    assert "\n" not in told and "the kernel has" not in ended("it", now)


def test_what_ray_says_of_a_worker_becomes_one_sentence_and_other_failures_none():
    told = ended_by_ray("a worker", DIED)
    assert told.startswith("a worker was ended without a word, as by signal 9")
    monitor = ended_by_ray("its edge host", MONITOR)
    assert f"was ended by Ray's memory monitor ({OF_MONITOR})" in monitor
    assert all(text == printable(text) for text in (told, monitor))  # whole, and in one line
    asked = DIED.partition("detail: ")[0] + "detail: Worker exits by a signal SIGTERM."
    assert ended_by_ray("it", asked).startswith(
        "it has ended (Ray: Worker exits by a signal SIGTERM)"
    )
    assert ended_by_ray("a worker", "RayTaskError: ray::run() ValueError: 3 is too few") == ""


def test_a_worker_that_is_gone_is_not_waited_for(monkeypatch):
    grid = SimpleNamespace(
        push_messages=lambda messages: ["1"],
        pull_messages=lambda names: [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id="1"),
                has_error=lambda: True,
                error=SimpleNamespace(reason=f"<class 'ray.exceptions.ActorDiedError'>:<'{DIED}'>"),
            )
        ],
    )
    monkeypatch.setattr(questions, "Message", lambda *args, **keys: None)
    asked = Questions(grid)
    asked.ask([5])
    asked.answers()  # in a deployment the others go on
    monkeypatch.setattr(questions, "in_simulation", lambda: True)
    asked.ask([5])
    with pytest.raises(FedloraError, match="a worker of the simulation was ended without a word"):
        asked.answers()


class Gone(ClientLink):
    client = "0"

    def send(self, frame):
        pass

    def receive(self, timeout_s):
        raise ClientLost("client 0 is gone (closed)")

    def close(self, reason=""):
        pass


@pytest.mark.parametrize("whole", [True, False])
def test_a_simulation_over_flower_does_not_go_on_without_a_client(whole):
    cohort = Cohort(1.0, lambda *booked: None)
    cohort.whole = whole
    cohort.add(Member(Gone(), rows=1, held_out_rows=0))
    if whole:
        with pytest.raises(FedloraError, match=r"client 0 is gone .* does not go on without it"):
            cohort.ask(["0"], Step(0))
    else:
        assert cohort.ask(["0"], Step(0)) == {} and "0" in cohort.lost


def test_clients_whose_host_is_gone_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions_module, "Message", lambda *args, **keys: None)
    silent = SimpleNamespace(push_messages=lambda messages: ["1", "2", "3"])
    silent.pull_messages = lambda names: []
    server = ServerRun(tiny(), RunFolder.create(tmp_path / "run"))
    with Sessions(silent, server, NODES, Places(run="0" * 16)) as sessions:
        assert server.cohort.whole
        threading.Timer(0.3, sessions.break_off, ["the edge host is gone"]).start()
        with pytest.raises(FedloraError, match="the edge host is gone"):
            sessions.open()


@pytest.mark.parametrize("simulated", [True, False])
def test_ray_is_asked_for_hosts_where_one_runs_and_nowhere_else(tmp_path, monkeypatch, simulated):
    """Its functions would start one in the process that asks."""
    asked = []

    def get_actor(name, namespace):
        asked.append(name)
        raise ValueError

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(ray, "wait", lambda *args, **keys: ([], []))
    monkeypatch.setattr(edge_hosts, "_LOOK_S", 0.01)
    monkeypatch.setattr(edge_hosts, "in_simulation", lambda: simulated)
    folder = RunFolder.create(tmp_path / "run")
    with EdgeHosts(tiny(), NODES, 0, folder) as hosts, hosts.watched(asked.append):
        time.sleep(0.5)
    assert bool(asked) == simulated


def test_a_server_that_is_gone_is_told_of_with_its_process_and_how_to_go_on(tmp_path, monkeypatch):
    def enter(self):
        self._watch.process = 4321
        return self

    played = {
        "__enter__": enter,
        "stop": lambda self: None,
        "working": property(lambda self: False),
        "last_words": lambda self: "",
    }
    for name, what in played.items():
        monkeypatch.setattr(FlowerSimulation, name, what)
    folder, scenario = RunFolder.create(tmp_path / "run"), tiny()
    folder.write_scenario(scenario_to_toml(scenario))
    with pytest.raises(FedloraError) as ended_:
        follow_simulation(folder, scenario)
    told = str(ended_.value)
    assert told.startswith("the server's process 4321 was ended without a word, as by signal 9")
    assert "no round was finished" in told and str(folder.log) in told
