"""A run: the frozen-backbone baseline, then rounds of ranks, steps, delivery and evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fedlora.config import Scenario
from fedlora.errors import NoClientsLeft
from fedlora.link import Phase, Round
from fedlora.participation import draw_clients
from fedlora.privacy.plan import check_release
from fedlora.ranks import ClientReport, RankDecision
from fedlora.report import RoundRecord
from fedlora.server.air import Air
from fedlora.server.best import BestRound
from fedlora.server.compute import SharedHead, SplitEngine
from fedlora.server.evaluation import Evaluation, Evaluator
from fedlora.server.exchange.batches import Batches
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.deliveries import Deliveries
from fedlora.server.exchange.head_sharing import HeadSharing
from fedlora.server.exchange.reports import Reports
from fedlora.server.held_out import counts_of
from fedlora.server.ranking import Ranking, RoundSignals
from fedlora.server.round_record import Outcome, round_record
from fedlora.server.steps import StepLoop
from fedlora.tasks import Task, task_class
from fedlora.threads import on_threads

log = logging.getLogger("fedlora.server")

_SMALL = 1 << 22  # numbers that a step's clients send


class Recorder(Protocol):
    """Where a run writes down how it goes; ``RunFolder`` is one."""

    def append_event(self, event: str, /, **fields: object) -> None:
        """Note progress."""

    def append_round(self, record: RoundRecord) -> None:
        """Note a finished round."""


class Training:
    """Runs a scenario over connected clients.

    Parameters
    ----------
    scenario
        What to do.
    engine
        The server's compute.
    cohort
        The connected clients.
    air
        Channel truth, delivery and the ledger.
    ranking
        The rank strategy.
    recorder
        Where progress goes.

    Attributes
    ----------
    before_rounds
        Called once, before the first round of a run that is not taken up again.
    after_round
        Called when a round is finished and recorded.
    outcome
        The metric, and what it was before the first round.
    deliveries
        Which adapter each client has.
    batches
        Reads the clients' activations, and keeps them.
    sharing
        The head that clients have in common.
    done
        Rounds that are finished.
    spending
        What the clients' privacy has cost.
    best
        The best round so far.
    evaluated
        Counts of the last evaluation, see ``counts_of``; of the round that is kept, at the end.
    tokens
        Tokens that went through the blocks in the phase so far.
    kept
        Number of the round whose adapter is kept, where that is not simply the last.
    """

    def __init__(
        self,
        scenario: Scenario,
        engine: SplitEngine,
        cohort: Cohort,
        air: Air,
        ranking: Ranking,
        recorder: Recorder,
    ) -> None:
        self.before_rounds: Callable[[], None] = lambda: None
        self.after_round: Callable[[], None] = lambda: None
        self.scenario = scenario
        self.engine = engine
        self.cohort = cohort
        self.air = air
        self.ranking = ranking
        self.recorder = recorder
        self.task: type[Task] = task_class(scenario.task.kind)
        geometry = engine.geometry
        check_release(scenario, pools=geometry.classifies, trains_head=geometry.trains_head)
        self.outcome = Outcome()
        self.sharing = HeadSharing(scenario, cohort)
        self.deliveries = Deliveries(engine, cohort, air, ranking.space)
        self.batches = Batches(scenario, engine, cohort, air)
        self._evaluator = Evaluator(
            scenario,
            engine,
            cohort,
            self.batches,
            self.task(scenario.task, scenario.task.labels),
            self._on_rows,
            lambda: self.head,
        )
        self._reports = Reports(scenario, cohort, air)
        self._steps = StepLoop(scenario, engine, cohort, self.batches, self._on_step)
        self.done = 0
        self.best = BestRound(scenario.evaluate)
        self.evaluated: Mapping[str, Any] | None = None
        self.kept: int | None = None
        self.spending = self._steps.spending
        self._phase = ""
        self._round = 0
        self.tokens = 0
        self._moved = True

    def run(self, restore: Callable[[], None] | None = None) -> None:
        """Run the baseline, if wanted, and all rounds that are not done yet.

        Parameters
        ----------
        restore
            In a run that is taken up again: puts everything, ``done`` included, to where it was.

        Raises
        ------
        NoClientsLeft
            When fewer clients are left than a round needs, or none in the middle of it.
        """
        with on_threads(1 if self._is_small() else torch.get_num_threads()):
            self._run(restore)

    def _is_small(self) -> bool:
        """Tell whether all but the engine's passes, which choose themselves, is for one thread.

        Some of torch's operations wake all threads for a handful of numbers, and they would wait
        for each other, and for clients' cores.
        """
        config, geometry = self.scenario, self.engine.geometry
        clients = config.federation.clients_per_round or config.federation.clients
        states = clients * config.train.batch_size * config.task.max_length
        ends = geometry.trains_head and not geometry.classifies
        ends = ends or config.front.share != "personal"  # as many numbers as there are words
        return states * self.engine.blocks.width <= _SMALL and not ends

    def _run(self, restore: Callable[[], None] | None) -> None:
        if self.scenario.evaluate.baseline and restore is None:
            self._baseline()
        self._begin("train")
        if restore is None:
            self.before_rounds()
        else:
            restore()
        for round_ in range(self.done + 1, self.scenario.train.rounds + 1):
            if self.best.over:
                break
            self._train_round(round_)
        if found := self.best.restore(self.engine, self.head):
            self.kept, self.evaluated = found

    def _baseline(self) -> None:
        """Train the same head for the same steps on the frozen backbone."""
        self._begin("baseline")
        zero = dict.fromkeys(self.cohort.clients, self.engine.zero_ranks())
        if self.engine.geometry.trains_head:
            with self.engine.frozen():
                for round_ in range(1, self.scenario.train.rounds + 1):
                    self._baseline_round(round_, zero)
        evaluation = self._evaluator.run(self.cohort.clients, zero, {}, writes=False)
        self.outcome.before, _ = self.outcome.of(evaluation.total)
        self.recorder.append_event(
            "round", phase="baseline", metric=self.outcome.before, metric_name=self.outcome.name
        )

    def _baseline_round(self, round_: int, zero: Mapping[str, Sequence[int]]) -> None:
        self._round = round_
        chosen = self._select(round_)
        self.cohort.begin_round()
        present = self.cohort.ask(chosen, Round(round_))
        steps = self.scenario.train.steps
        first = (round_ - 1) * steps
        tally = self._steps.run(list(present), zero, first, self.sharing.step_head, train=False)
        self.sharing.end_round(tally.asked, tally.rows)

    def _train_round(self, round_: int) -> None:
        """Run reports, ranks, steps, head, delivery and evaluation, then note the round."""
        started, self._round = time.perf_counter(), round_
        before = set(self.cohort.lost)
        drawn = self._select(round_)
        self.cohort.begin_round()
        asked = self.cohort.ask(drawn, Round(round_))
        reports = self._some(self._reports.read(round_, asked))
        chosen, bandwidth_hz = self.air.schedule(round_, reports, self.cohort.drop)
        self.air.begin_round(round_, bandwidth_hz)
        self._reports.book(reports)
        reports = self._some(self.air.with_budgets(chosen, self.cohort.drop))
        decisions = self.ranking.allocate(round_, reports)
        steps = self.scenario.train.steps
        tally = self._steps.run(
            self._present(list(decisions)),
            {client: decision.train for client, decision in decisions.items()},
            (round_ - 1) * steps,
            self.sharing.step_head,
            train=True,
            front=self.sharing.step_front,
        )
        self.sharing.end_round(tally.asked, tally.rows)
        self.deliveries.send(round_, decisions)
        evaluation = self._evaluate(round_, decisions)
        record = round_record(
            round_,
            round_ * steps,
            reports,
            decisions,
            tally,
            evaluation,
            self.outcome,
            self.air,
            self.spending,
        )
        record["raw_bits"] = sum(map(self.engine.geometry.raw_bits, tally.lengths.values()))
        losses = {c: own["loss"] for c, own in record["clients"].items() if c in self.cohort}
        record["components"] = moved = self.engine.update.moved()
        self._tell_untrained(moved)
        snr = self.engine.round_snr()
        if snr is not None:
            record["gradient_snr"] = snr
        epsilons = {client: self.spending.epsilon(client) for client in losses}
        told = RoundSignals(self.engine.update.sensitivity.take(), snr, epsilons)
        self.ranking.observe(round_, losses, told, self.air)
        self.air.end_round(round_, decisions)
        record["seconds"] = time.perf_counter() - started
        record["lost"] = sorted(set(self.cohort.lost) - before)
        record["missed"] = dict(tally.missed)
        self.recorder.append_round(record)
        self.done = round_
        if evaluation is not None and evaluation.total is not None:
            self.evaluated = counts_of(round_, evaluation)
            self.best.see(
                round_,
                record["metric"],
                higher=self.outcome.higher_is_better,
                engine=self.engine,
                head=self.head,
                evaluated=self.evaluated,
            )
        self.after_round()
        up, down = self.air.bits_so_far()  # with heads and adapters, which follow the last step
        self.recorder.append_event(
            "round",
            phase="train",
            bits_up=up,
            bits_down=down,
            **{k: record.get(k) for k in ("round", "step", "loss", "metric", "metric_name")},
        )

    def _tell_untrained(self, moved: Mapping[str, int]) -> None:
        """Say that a round has trained nothing, unless the round before has not either."""
        if not moved["trained"] and self._moved:
            why = "too few clients for robust.hostile" if moved["resting"] else "all ranks are 0"
            log.warning("round %d has trained no component of the adapter (%s)", self._round, why)
        self._moved = moved["trained"] > 0

    def _some(self, reports: dict[str, ClientReport]) -> dict[str, ClientReport]:
        """Return the reports; raises ``NoClientsLeft`` when there is none."""
        if not reports:
            raise NoClientsLeft(
                f"no client began round {self._round} ({self.cohort.reasons()}); mend that and "
                "start again"
            )
        return reports

    def _begin(self, phase: str) -> None:
        """Put clients and shared head back to the start."""
        self._phase, self.tokens = phase, 0
        self.air.purpose = "train" if phase == "train" else "baseline"
        self.air.begin_round(1)  # shared heads are handed in before the first round
        config = self.scenario.train
        self._steps.spending.note_rows(self.cohort[c].rows for c in self.cohort.clients)
        self.recorder.append_event(
            "phase",
            name=phase,
            rounds=config.rounds,
            steps=config.steps,
            clients=len(self.cohort.clients),
        )
        self.batches.begin_phase()
        replies = self.cohort.ask(self.cohort.clients, Phase(phase))
        self.sharing.begin(replies)

    @property
    def head(self) -> SharedHead | None:
        """The head that all clients have in common; None where heads are personal."""
        return self.sharing.head

    def _select(self, round_: int) -> list[str]:
        """Draw the clients of a round; the same for the same seed and round."""
        clients = self.cohort.clients
        if len(clients) < self.scenario.federation.min_clients:
            raise NoClientsLeft(
                f"{len(clients)} clients are connected, federation.min_clients is "
                f"{self.scenario.federation.min_clients} ({self.cohort.reasons()}); mend that and "
                "start again"
            )
        wanted = self.scenario.federation.clients_per_round
        return draw_clients(clients, wanted, self.scenario.seed, round_)

    def _evaluate(self, round_: int, decisions: Mapping[str, RankDecision]) -> Evaluation | None:
        config = self.scenario
        if round_ % config.evaluate.every and round_ != config.train.rounds:
            return None
        self.air.purpose = "evaluation"
        ranks, adapters = self.deliveries.in_use(decisions)
        evaluation = self._evaluator.run(self.cohort.clients, ranks, adapters)
        self.air.purpose = "train"
        return evaluation

    def _on_step(self, step: int, loss: float | None, tokens: int) -> None:
        self.tokens += tokens
        up, down = self.air.bits_so_far()
        self.recorder.append_event(
            "step",
            phase=self._phase,
            round=self._round,
            step=step + 1,
            loss=loss,
            tokens=self.tokens,
            bits_up=up,
            bits_down=down,
        )

    def _on_rows(self, rows: int, total: int) -> None:
        self.recorder.append_event(
            "evaluation", phase=self._phase, round=self._round, rows=rows, total=total
        )

    def _present(self, clients: Sequence[str]) -> list[str]:
        return [client for client in clients if client in self.cohort]

    def summary_fields(self) -> dict[str, Any]:
        """Return what the summary needs beyond the rounds."""
        return {
            **self.outcome.fields(),
            "privacy": self._steps.spending.statement(self.cohort.clients),
            "trainable_parameters": sum(p.A.numel() + p.B.numel() for p in self.engine.projections)
            + len(self.engine.also),
        }
