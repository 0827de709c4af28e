"""Checkpoints of a run at round boundaries, with nothing in flight, and going on from one."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.check import check_plugins
from fedlora.config import Scenario, load_scenario
from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.link import Frame, Keep, Ready, Restore, messages as m
from fedlora.report import RunFolder
from fedlora.server.best import BestRound
from fedlora.server.exchange.member import natural
from fedlora.storage import lock_file, replace_file
from fedlora.storage.state import RoundStates

if TYPE_CHECKING:
    from fedlora.server.training import Training

log = logging.getLogger("fedlora.server")

_FORMAT = 2


class Checkpoints:
    """A run's checkpoints: adapter, optimiser, shared head, deliveries, strategy and air ledger.

    Clients store their part, personal heads and their optimisers, on their own disks first. The
    last two rounds are kept on both sides, so that whoever dies at whatever moment, there is a
    round that everybody has.

    Parameters
    ----------
    folder
        Where they are.

    Attributes
    ----------
    clients
        Folder of simulated clients' states.
    """

    def __init__(self, folder: Path) -> None:
        self.clients = folder / "clients"
        self._name = folder / "run"
        self._states = RoundStates(folder)

    def hold(self) -> None:
        """Keep other processes from going on with this run as long as the object lives.

        Raises
        ------
        FedloraError
            When another process holds it.
        """
        self._states.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self._states.folder / "lock")
        if self._lock is None:
            raise FedloraError(
                f"a process of this run still writes to {self._states.folder}; end it first"
            )

    def name(self) -> str:
        """Return the run's own name, by which devices find their states of it again."""
        if not self._name.exists():
            replace_file(self._name, secrets.token_hex(8).encode())
        return self._name.read_text(encoding="ascii")

    def save(self, training: Training) -> None:
        """Let all clients store their states, then store the server's."""
        cohort = training.cohort
        for client, reply in cohort.ask(cohort.clients, Keep(training.done)).items():
            if _round_of(reply) != training.done:
                log.warning("client %s could not store its state", client)
        self._states.write(training.done, _state_of(training))

    def latest(self) -> dict[str, Any] | None:
        """Return the last state that can be read, or None when there is none at all.

        Raises
        ------
        FedloraError
            When there are states but none can be read.
        """
        for round_, state in self._states.readable():
            log.info("round %d is taken up", round_)
            return state
        if self._states.rounds():
            raise FedloraError(f"no checkpoint in {self._states.folder} can be read; start anew")
        return None

    def restore(self, training: Training, state: Mapping[str, Any]) -> None:
        """Put the server and all connected clients to where they were; see ``Training.run``.

        Raises
        ------
        FedloraError
            When the checkpoint is of another release or another scenario.
        """
        if state.get("format") != _FORMAT:
            raise FedloraError(
                f"the checkpoint has format {state.get('format')}, this release reads {_FORMAT}; "
                "resume with the release that began the run"
            )
        round_ = int(state["round"])
        self._states.forget_after(round_)
        training.engine.load_state_dict(state["engine"])
        training.ranking.load_state_dict(state["ranking"])
        training.spending.load_state_dict(state["spending"])
        training.outcome.load(state["metrics"])
        training.deliveries.held = {
            client: (state["adapters"][place], ranks)
            for client, (place, ranks) in state["delivered"].items()
        }
        training.done = round_
        training.tokens = state.get("tokens", 0)
        training.evaluated = state.get("evaluated")
        training.best = BestRound(training.scenario.evaluate)
        if "best" in state:  # releases before 0.2 had none
            training.best.load_state_dict(state["best"])
        training.sharing.load_state_dict(state["head"], state.get("front"))
        rows = state.get("rows")  # releases before 0.2 had none
        back = self.restore_clients(training, training.cohort.clients, rows=rows is not None)
        training.batches.load_state_dict(rows or {}, back)
        training.batches.representations.load_state_dict(state.get("levels", {}), back)
        training.air.load_state_dict(state["air"])  # what went down for this counted before

    def restore_clients(
        self, training: Training, clients: Sequence[str], *, rows: bool = False
    ) -> list[str]:
        """Put clients that have just connected to the end of the rounds that are done.

        The others wait for them no longer than for a step; who is late is lost, and may come again.

        Parameters
        ----------
        training
            The run.
        clients
            Who is put there.
        rows
            Whether the server remembers which activations it had kept of them by then.

        Returns
        -------
        list
            Those that had a state of just that round.
        """
        cohort, done, back = training.cohort, training.done, []
        others = [client for client in cohort.clients if client not in clients]
        replies = cohort.ask(clients, Restore(done, rows), others)
        for client, reply in replies.items():
            kept = _round_of(reply)
            if kept == done:
                back.append(client)
            else:
                log.warning(
                    "client %s goes on from its state of round %s, not %d", client, kept, done
                )
        training.sharing.give(list(replies), others)
        for client in clients if others else ():
            if client in cohort.late:
                cohort.lose(client, ClientLost(f"client {client} was late to begin again"))
        return [client for client in back if client in cohort]

    def begin_late(self, training: Training, clients: Iterable[str]) -> None:
        """Let clients that come when rounds are done begin with the common head.

        The others wait for them no longer than for a step; see ``Cohort.exchange``. Who has kept a
        state of this run, as a resumed one may find, goes on from that.
        """
        cohort, done = training.cohort, training.done
        for client in sorted(clients, key=natural):
            others = [other for other in cohort.clients if other != client]
            replies = cohort.ask([client], Restore(done), others)
            if client in replies and training.sharing.give([client], others):
                log.info("client %s has come after round %d and takes part", client, done)
            elif client in cohort:
                cohort.lose(client, ClientLost(f"client {client} was late to begin"))


def _round_of(reply: Frame) -> int | None:
    """Return whose state a client has stored or gone back to; None where it says none."""
    try:
        return Ready.from_frame(reply).round
    except ProtocolError:
        return None


def open_run(
    path: Path, check: Callable[[Scenario], None] = check_plugins
) -> tuple[Scenario, RunFolder]:
    """Open the folder of a run that stopped before its end, for going on.

    Parameters
    ----------
    path
        The folder.
    check
        Refuses a scenario that cannot be used, before the folder is changed.

    Raises
    ------
    FedloraError
        When it holds no run, is finished, has no checkpoint, or belongs to a run that goes on.
    """
    folder = RunFolder(path)
    if not folder.scenario.is_file():
        raise FedloraError(f"{path} holds no run; name a run folder")
    summary = folder.read_summary()
    if summary is not None and not summary.get("unfinished"):
        raise FedloraError(f"the run in {path} is finished; start another with fedlora run")
    states = RoundStates(folder.checkpoint)
    if not states.rounds():
        raise FedloraError(f"{path} has no checkpoint: no round was finished; start it anew")
    if next(states.readable(), None) is None:
        raise FedloraError(f"no checkpoint in {folder.checkpoint} can be read; start anew")
    scenario = load_scenario(folder.scenario)
    check(scenario)
    return scenario, RunFolder.reopen(path)


def _state_of(training: Training) -> dict[str, Any]:
    adapters: list[Any] = []  # one that several clients were delivered is stored once
    delivered: dict[str, Any] = {}
    for client, (adapter, ranks) in training.deliveries.held.items():
        known = [place for place, other in enumerate(adapters) if other is adapter]
        if not known:
            adapters.append(adapter)
        delivered[client] = (known[0] if known else len(adapters) - 1, list(ranks))
    return {
        "format": _FORMAT,
        "round": training.done,
        "tokens": training.tokens,
        "engine": training.engine.state_dict(),
        "head": training.sharing.state_dict(),
        "front": training.sharing.state_dict(m.FRONT_WEIGHT),
        "adapters": adapters,
        "delivered": delivered,
        "ranking": training.ranking.state_dict(),
        "air": training.air.state_dict(),
        "rows": training.batches.state_dict(),
        "levels": training.batches.representations.state_dict(),
        "spending": training.spending.state_dict(),
        "metrics": training.outcome.fields(),
        "evaluated": training.evaluated,
        "best": training.best.state_dict(),
    }
