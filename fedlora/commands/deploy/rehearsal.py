"""What ``fedlora rehearse`` does: a deployment that is planned, followed, tended and shown."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.check import check_run, check_server
from fedlora.commands.run import with_plugins
from fedlora.config import ChannelConfig, NodeKeys, Scenario, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.launch.deployment import RESTART_S, Deployment, write_node_config
from fedlora.launch.killed import ended
from fedlora.report import (
    ProgressView,
    RunFolder,
    bytes_text,
    count_text,
    print_result,
    seconds_text,
)
from fedlora.report.page import write_report
from fedlora.scenarios import find_scenario
from fedlora.site.history import read_history
from fedlora.split import model_folder, slice_checkpoint
from fedlora.storage import dated_folder

_LOOK_S = 0.5
NAME = "rehearsal"
"""The part of a run folder that holds the deployment: logs, states, node configurations."""

_OURS = (
    "partition-id",
    "num-partitions",
    "data",
    "scenario-data",
    "model",
    "state",
    "privacy-ledger",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is rehearsed.

    Attributes
    ----------
    scenario
        With as many clients as there are nodes.
    keys
        Of each node's configuration.
    kill
        Whether one is killed.
    """

    scenario: Scenario
    keys: Sequence[Mapping[str, str | int]]
    kill: bool


def plan_rehearsal(
    name: str,
    nodes: int,
    data: Sequence[str],
    keys: Sequence[str],
    overrides: Sequence[str],
    *,
    kill: bool,
) -> Plan:
    """Return what is to be rehearsed; nothing has been started then.

    Parameters
    ----------
    name
        Name or path of a scenario.
    nodes
        How many devices there are.
    data
        A file for each of them; none takes their parts of the scenario's data.
    keys
        ``KEY=VALUE`` of every node configuration.
    overrides
        ``section.key=value`` assignments.
    kill
        Whether a device is killed.

    Raises
    ------
    FedloraError
        When the scenario or a key cannot be used, or there is not one file for each device.
    """
    scenario = with_overrides(find_scenario(name), overrides)
    least = nodes if kill else min(nodes, scenario.federation.min_clients)
    fitted = [f"federation.clients={nodes}", f"federation.min_clients={least}"]
    scenario = with_overrides(scenario, fitted)
    if kill and scenario.train.rounds < 2:
        raise FedloraError(
            f"train.rounds is {scenario.train.rounds}, and --kill ends a device after the first "
            "round; set 2 or more"
        )
    if data and len(data) != nodes:
        raise FedloraError(
            f"--data names {len(data)} files for {nodes} nodes; name one for each, or none"
        )
    common = dict(_pair(pair) for pair in keys)
    made: list[dict[str, str | int]] = []
    for number in range(nodes):
        own = {"data": str(Path(data[number]).resolve())} if data else {"scenario-data": "true"}
        made.append({"partition-id": number, **own, **common})
        NodeKeys.read({**made[-1], "model": "package"})
    _check(scenario, own_data=bool(data))
    return Plan(with_plugins(scenario), made, kill)


def rehearse_plan(plan: Plan, out: Path | None, *, overwrite: bool) -> None:
    """Rehearse a plan and show what came of it.

    Parameters
    ----------
    plan
        What is rehearsed.
    out
        Run folder; None makes one under ``runs``.
    overwrite
        Whether an earlier run in ``out`` is replaced.

    Raises
    ------
    FedloraError
        When the folder is taken, the run failed, or who was killed did not come back.
    """
    place = (out or dated_folder(Path("runs") / f"{plan.scenario.name}-{NAME}")).resolve()
    _Rehearsal(plan, RunFolder.create(place, overwrite=overwrite)).run()


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or key in _OURS:
        why = "the rehearsal sets it itself" if equals else "write KEY=VALUE"
        raise FedloraError(f"--node is {text!r}; {why}, and fedlora keys --node lists all keys")
    return key, value


def _check(scenario: Scenario, *, own_data: bool) -> None:
    with Console().status("checking the scenario, its model and its data"):
        check_server(scenario)
        if not own_data:
            # Its channel may be one that devices measure, which a simulation is refused.
            check_run(dataclasses.replace(scenario, channel=ChannelConfig()))


@dataclasses.dataclass
class _Killed:
    """A device that was killed.

    Attributes
    ----------
    node
        Which one.
    round
        The round that went on then.
    connections, starts
        How often it had been taken and started before.
    at
        When, on ``time.monotonic``.
    back_s
        After how many seconds it was taken again; None while it is away.
    """

    node: int
    round: int
    connections: int
    starts: int
    at: float
    back_s: float | None = None


class _Rehearsal:
    """A deployment that is started, looked after, and shown."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self.console = Console()
        self.killed: _Killed | None = None
        self.starts: dict[int, int] = {}
        self.peaks: dict[str, int] = {}
        self._looked = 0.0
        self.deployment = Deployment(folder.path / NAME, len(plan.keys))

    def run(self) -> None:
        """Start everything, follow the run to its end, end everything, and show what came of it."""
        nodes = len(self.plan.keys)
        self._say(
            f"fedlora: {self.plan.scenario.name} with a server and {nodes} devices on this "
            f"machine, into {self.folder.path}"
        )
        try:
            with self.deployment as deployment:
                self._start(deployment)
                with ProgressView(self.folder, console=self.console) as view:
                    status = view.follow(lambda: self._going(deployment))
                self.starts = {number: node.starts for number, node in deployment.nodes.items()}
        except (KeyboardInterrupt, BrokenPipeError, SystemExit):
            self.folder.append_event("done", status="interrupted", text="interrupted by the user")
            raise
        finally:
            shutil.rmtree(self.deployment.certs, ignore_errors=True)  # keys of nothing now
        if status != "finished":
            reason = view.text or ended("the server's process")
            raise FedloraError(f"{reason} (logs: {self.folder.log}, {self.deployment.folder})")
        write_report(self.folder)
        print_result(self.folder, self.console)
        self.console.print(self._table())
        self._say(
            f"The server's process took {bytes_text(self.peaks.get('server'))} at its peak, Python "
            "and torch included, as do the devices' above"
        )
        self._say(f"What device 0 wrote for its owner: fedlora site {self.deployment.states(0)}")
        self._conclude()

    def _start(self, deployment: Deployment) -> None:
        self._say(f"the SuperLink answers on 127.0.0.1:{deployment.port}, with TLS")
        names = [deployment.register(number) for number in range(len(self.plan.keys))]
        federation = dataclasses.replace(self.plan.scenario.federation, nodes=tuple(names))
        scenario = dataclasses.replace(self.plan.scenario, federation=federation)
        self.folder.write_scenario(scenario_to_toml(scenario))
        package = self._package(deployment.folder)
        for number, keys in enumerate(self.plan.keys):
            own = {"model": str(package), "state": str(deployment.states(number))}
            own |= {"privacy-ledger": str(deployment.folder / f"ledger{number}")}
            config = deployment.folder / f"node{number}.toml"
            write_node_config(config, {**own, **keys})
            deployment.start_node(number, str(config))
        deployment.submit(self.folder.scenario, self.folder.path)
        self._say(
            f"{len(names)} nodes with keys of their own are started, and the run is given to the "
            "SuperLink; its first step comes after 20 to 40 s"
        )

    def _package(self, folder: Path) -> Path:
        """Make the edge package, which is all that a device has of the model."""
        model = self.plan.scenario.model
        out = folder / "package"
        slice_checkpoint(model_folder(model.path), out, model.client_front, model.client_back)
        return out

    def _going(self, deployment: Deployment) -> bool:
        """Look after the devices; tell whether the run may still go on."""
        if self.plan.kill and self.killed is None and self.folder.read_metrics():
            self._kill(deployment)
        deployment.look_after()
        self._look_for_killed(deployment)
        if time.monotonic() >= self._looked + _LOOK_S:
            self._looked = time.monotonic()
            for name, size in deployment.peaks().items():
                self.peaks[name] = max(size, self.peaks.get(name, 0))
        return deployment.working

    def _kill(self, deployment: Deployment) -> None:
        number = len(self.plan.keys) - 1
        round_ = len(self.folder.read_metrics()) + 1
        before = deployment.connections(number), deployment.nodes[number].starts
        deployment.cut_power(number)
        self.killed = _Killed(number, round_, *before, time.monotonic())
        self._say(
            f"device {number} is killed in round {round_}, with all its processes; it is started "
            f"again every {RESTART_S:.0f} s, as its unit does, and Flower takes up to a minute to "
            "let it in"
        )

    def _look_for_killed(self, deployment: Deployment) -> None:
        killed = self.killed
        if killed is None or killed.back_s is not None:
            return
        if deployment.connections(killed.node) > killed.connections:
            killed.back_s = time.monotonic() - killed.at
            refused = deployment.nodes[killed.node].starts - killed.starts - 1
            self._say(
                f"device {killed.node} is back after {seconds_text(killed.back_s)}, in which the "
                f"SuperLink refused it {refused} times"
            )

    def _table(self) -> Table:
        """Lay out what each device did, by the server's records and by its own."""
        table = Table(box=box.SIMPLE_HEAD, title="devices", title_justify="left")
        names = ("device", "rounds", "rows", "missed", "starts", "bytes out", "memory")
        for name in (*names, "its own word"):
            last = name == "its own word"
            table.add_column(name, justify="left" if last else "right", no_wrap=not last)
        rounds = self.folder.read_metrics()
        for number in range(len(self.plan.keys)):
            name = str(number)
            mine = [r["clients"][name] for r in rounds if name in r["clients"]]
            rows = [int(own.get("rows", 0)) for own in mine]
            missed = sum(int(record["missed"].get(name, 0)) for record in rounds)
            sent, state = self._own_word(number)
            cells: list[Any] = [sum(map(bool, rows)), sum(rows), missed, self.starts[number], sent]
            memory = bytes_text(self.peaks.get(name))
            table.add_row(name, *(count_text(cell) for cell in cells), memory, Text(state))
        return table

    def _own_word(self, number: int) -> tuple[int, str]:
        """Return the bytes that left a device by its audit file, and how its last session ended."""
        try:
            sessions = read_history(self.deployment.states(number)).sessions
        except FedloraError:  # it was never asked
            return 0, "was not invited"
        return sum(sum(s.left.values()) for s in sessions), sessions[-1].state

    def _conclude(self) -> None:
        """Tell whether who was killed took part again.

        Raises
        ------
        FedloraError
            When it did not.
        """
        if self.killed is None:
            return
        name, begun = str(self.killed.node), self.killed.round
        again = [
            int(record["round"])
            for record in self.folder.read_metrics()
            if record["round"] > begun and record["clients"].get(name, {}).get("rows")
        ]
        if self.killed.back_s is None or not again:
            raise FedloraError(
                f"device {name} was killed in round {begun} and did not take part again before "
                f"the run's end; see {self.deployment.log(self.killed.node)}"
            )
        self._say(
            f"Recovered: device {name} was killed in round {begun}, was back after "
            f"{seconds_text(self.killed.back_s)} and took part again from round {again[0]} on."
        )

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
