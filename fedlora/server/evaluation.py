"""Held-out evaluation: the server runs the blocks, the clients keep labels and compute metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fedlora.blame import blaming
from fedlora.config import Scenario
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import Eval, EvalBegin, Frame, Metrics, create_codec, messages as m, pack
from fedlora.server.compute import AdapterState, ClientRows, SharedHead, SplitEngine
from fedlora.server.exchange import head_space
from fedlora.server.exchange.batches import Batches
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.uploads import Activation
from fedlora.server.steps import Ranks
from fedlora.tasks import ClassificationCounts, Counts, ScoreCounts, Task, TextCounts

_TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class Evaluation:
    """Counts of the clients' held-out rows.

    Attributes
    ----------
    counts
        By client; clients without held-out rows are missing.
    total
        All of them added up (sums, so exact whatever the clients' sizes); None for none.
    scores
        Histograms of scores, of the clients that tell them.
    texts
        Sums over texts that were written on after held-out prompts, where that is asked for.
    """

    counts: Mapping[str, Counts]
    total: Counts | None
    scores: Mapping[str, ScoreCounts] = field(default_factory=dict)
    texts: Mapping[str, TextCounts] = field(default_factory=dict)


class Evaluator:
    """Evaluates every client with the adapter that it has.

    Parameters
    ----------
    scenario, engine, cohort
        As for ``StepLoop``.
    batches
        Reads what they upload.
    task
        Reads the clients' counts.
    on_rows
        Called now and then in a long evaluation with the rows that are done and those that there
        are.
    head
        Returns the head that all clients have in common, if there is one.
    """

    def __init__(
        self,
        scenario: Scenario,
        engine: SplitEngine,
        cohort: Cohort,
        batches: Batches,
        task: Task,
        on_rows: Callable[[int, int], None],
        head: Callable[[], SharedHead | None],
    ) -> None:
        self.scenario = scenario
        self.engine = engine
        self.cohort = cohort
        self.task = task
        self.on_rows = on_rows
        self._batches, self._head = batches, head
        self._down = create_codec(**scenario.link.codec("representation"))

    def run(
        self,
        clients: Iterable[str],
        ranks: Ranks,
        adapters: Mapping[str, AdapterState],
        *,
        writes: bool = True,
    ) -> Evaluation:
        """Run all held-out rows of some clients.

        Parameters
        ----------
        clients
            Whom to evaluate.
        ranks
            For each, the ranks at which its adapter is used.
        adapters
            For each client, the factors it was last delivered; missing: the present ones.
        writes
            Whether held-out prompts are completed, where the scenario asks for it.
        """
        rows = self.scenario.evaluate.batch_size
        counts: dict[str, Counts] = {}
        scores: dict[str, ScoreCounts] = {}
        total: Counts | None = None
        texts: dict[str, TextCounts] = {}
        seen: dict[str, int] = {}
        written: dict[str, int] = {}
        asks = True if writes and self.scenario.evaluate.generate else None
        tell_at = time.monotonic() + _TELL_EVERY_S
        replies = self.cohort.exchange(
            {c: EvalBegin(rows, asks, **self._batches.fields(c)) for c in clients}
        )
        asked = list(replies)
        present = self.engine.adapter() if adapters else {}
        try:
            while replies:
                since_s = time.monotonic()
                open_, told = _partition(replies)
                for client, reply in told.items():
                    total = self._add(client, reply, seen.get(client, 0), counts, total)
                    if client in counts:
                        self._add_scores(client, reply, counts, scores)
                        self._add_texts(client, reply, counts, texts)
                batch = self._batch(open_, seen, written if asks else None, asked)
                done = [client for client in asked if client not in batch]
                replies = self._exchange(batch, ranks, adapters, present, done, since_s)
                if replies and time.monotonic() > tell_at:
                    tell_at = time.monotonic() + _TELL_EVERY_S
                    there = sum(self.cohort[c].held_out_rows for c in self.cohort.clients)
                    self.on_rows(sum(seen.values()), max(there, sum(seen.values())))
        finally:
            if adapters:
                self.engine.load_adapter(present)
        return Evaluation(counts, total, scores, texts)

    def _exchange(
        self,
        batch: Mapping[str, Activation],
        ranks: Ranks,
        adapters: Mapping[str, AdapterState],
        present: AdapterState,
        done: Iterable[str],
        since_s: float,
    ) -> dict[str, Frame]:
        """Forward the clients that hold the same adapter together."""
        groups: dict[int, list[str]] = {}
        for client in batch:
            groups.setdefault(id(adapters.get(client)), []).append(client)
        requests = {}
        for members in groups.values():
            if adapters:
                self.engine.load_adapter(adapters.get(members[0], present))
            z = self.engine.forward(
                [
                    ClientRows(b.packed, b.lengths, ranks[c], c, b.keepable)
                    for c, b in ((c, batch[c]) for c in members)
                ],
                train=False,
            )
            head = self._head() if self.scenario.link.r_cut else None
            for client, part in zip(members, z, strict=True):
                down = batch[client].down(part)
                if head is not None:
                    down = head_space.coordinates(down, head.linear_weight())
                requests[client] = Eval(
                    **self._batches.fields(client),
                    representation=pack("representation", down, self._down),
                )
        return self.cohort.exchange(requests, waiting=done, since_s=since_s)

    def _batch(
        self,
        replies: Mapping[str, Frame],
        seen: dict[str, int],
        written: dict[str, int] | None,
        asked: Iterable[str],
    ) -> dict[str, Activation]:
        """Read the next rows of every client; drop one that has more than it said.

        Rows of texts that are being written are counted in ``written``; with None there are none.
        """
        batch = self._batches.read(replies, self.scenario.evaluate.batch_size, asked)
        config = self.scenario.evaluate
        for client, activation in list(batch.items()):
            if written is not None and replies[client].fields.get("written") is True:
                written[client] = written.get(client, 0) + len(activation.lengths)
                most = min(config.generate, seen.get(client, 0)) * config.generate_tokens
                if written[client] > most:
                    self.cohort.drop(client, f"its texts take over {most} tokens")
                    del batch[client]
                continue
            seen[client] = seen.get(client, 0) + len(activation.lengths)
            held_out = self.cohort[client].held_out_rows
            if seen[client] > held_out:
                self.cohort.drop(client, f"it has more than the {held_out} held-out rows it told")
                del batch[client]
        return batch

    def _add(
        self, client: str, reply: Frame, rows: int, counts: dict[str, Counts], total: Counts | None
    ) -> Counts | None:
        """Note a client's counts and add them to the total; drop a client that errs."""
        try:
            told = Metrics.from_frame(reply).counts
            if rows == 0 and told is None:
                return total
            if rows == 0:
                raise ProtocolError("it tells counts, and has evaluated no row")
            with blaming(f"task.kind {self.scenario.task.kind!r}", type(self.task)):
                own = self.task.read_counts(told)
            if own.samples != rows:
                raise ProtocolError(f"its counts are of {own.samples} rows, it evaluated {rows}")
            total = own if total is None else total + own
            counts[client] = own
        except FedloraError as error:
            self.cohort.drop(client, str(error))
        except ValueError:
            self.cohort.drop(client, "its counts have other classes than those of other clients")
        return total

    def _add_scores(
        self,
        client: str,
        reply: Frame,
        counts: Mapping[str, Counts],
        scores: dict[str, ScoreCounts],
    ) -> None:
        """Note a client's histograms, where they are asked for and told; drop one that errs."""
        own, told = counts[client], Metrics.from_frame(reply).scores
        if told is None or not self.scenario.evaluate.scores:
            return
        try:
            classes = len(own.confusion) if isinstance(own, ClassificationCounts) else 0
            scores[client] = ScoreCounts.from_dict(told, classes, own.samples)
        except FedloraError as error:
            self.cohort.drop(client, str(error))

    def _add_texts(
        self,
        client: str,
        reply: Frame,
        counts: Mapping[str, Counts],
        texts: dict[str, TextCounts],
    ) -> None:
        """Note the scores of a client's texts, where they are asked for; drop one that errs."""
        told, most = Metrics.from_frame(reply).texts, self.scenario.evaluate.generate
        if told is None or not most:
            return
        try:
            texts[client] = TextCounts.from_dict(told, min(most, counts[client].samples))
        except FedloraError as error:
            self.cohort.drop(client, str(error))


def _partition(replies: Mapping[str, Frame]) -> tuple[dict[str, Frame], dict[str, Frame]]:
    open_ = {c: r for c, r in replies.items() if r.kind == m.ACTIVATION}
    return open_, {c: r for c, r in replies.items() if c not in open_}
