"""The first rounds of a run, trained in this process for what they take on the air."""

from __future__ import annotations

import dataclasses

from fedlora.config import Scenario
from fedlora.planning import Booked, Rehearsal
from simulations.in_process import Federation, Record


class InProcess(Rehearsal):
    """See ``Rehearsal``; bits are those of the run itself, if that has as many threads."""

    def run(self, scenario: Scenario, rounds: int) -> Booked:
        """See ``Rehearsal``; held-out rows are evaluated at the run's end alone.

        Where the server keeps activations they are when the run would, as they take room there.
        """
        keeps = scenario.link.reuse and not scenario.train.embedding
        quiet = dataclasses.replace(
            scenario.evaluate,
            every=scenario.evaluate.every if keeps else scenario.train.rounds,
            baseline=False,
            patience=0,
            keep="last",
            generate=0,
        )
        federation = Federation(dataclasses.replace(scenario, evaluate=quiet), Record())
        server = federation.server

        def stop() -> None:
            if server.training.done == rounds:
                raise _Rehearsed

        server.training.after_round = stop
        try:
            server.training.run()
        except _Rehearsed:
            pass
        finally:
            server.training.batches.close()
        found = {}
        for round_ in range(1, rounds + 1):
            for client in server.cohort.clients:
                row = server.air.row(round_, client)
                if row is not None:
                    found[round_, client] = {way: dict(own) for way, own in row.bits.items()}
        return found


class _Rehearsed(Exception):
    """The rounds are over."""
