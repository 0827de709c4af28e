"""Metrics of a run for Prometheus, over HTTP in its text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedlora import __version__
from fedlora.checks import finite
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.observe.observer import Observer, RunState
from fedlora.report import RoundRecord

STATES = ("connected", "awaited", "late", "lost")

Sample = tuple[Mapping[str, str], float | None]


class PrometheusObserver(Observer):
    """Turns the state of a run into metrics when it changes, so that a scrape only reads them.

    Parameters
    ----------
    scenario
        Names the run.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._name = scenario.name
        self._metrics: list[Any] = []

    def on_event(self, state: RunState, event: Mapping[str, Any]) -> None:
        """See ``Observer``."""
        self._metrics = list(self._families(state))

    def on_round(self, state: RunState, record: RoundRecord) -> None:
        """See ``Observer``."""
        self._metrics = list(self._families(state))

    def collect(self) -> Iterable[Any]:
        """Return the metric families; ``prometheus_client`` calls it in its own thread."""
        return self._metrics

    def _families(self, state: RunState) -> Iterator[Any]:
        yield from self._run(state)
        yield from self._clients(state)

    def _run(self, state: RunState) -> Iterator[Any]:
        info = {"name": self._name, "version": __version__}
        yield gauge("run_info", "The run, and the release that runs it.", [(info, 1.0)])
        phase, last = state.phase, state.last
        if phase is not None:
            of = {"phase": phase.name}
            for name, meaning, value in (
                ("round", "Round of the phase that goes on.", phase.round),
                ("rounds", "Rounds that the phase has.", phase.rounds),
                ("step", "Optimiser steps of the phase so far.", phase.step),
                ("steps", "Optimiser steps that the phase has.", phase.total_steps),
                ("train_loss", "Training loss of the last step.", phase.loss),
                ("steps_per_second", "Optimiser steps a second.", phase.steps_per_second),
                ("tokens_per_second", "Tokens trained on a second.", phase.tokens_per_second),
            ):
                yield gauge(name, meaning, [(of, value)])
            yield counter(
                "payload_bits",
                "Payload of the phase so far, seen from the client.",
                [
                    (of | {"direction": "up"}, phase.bits_up),
                    (of | {"direction": "down"}, phase.bits_down),
                ],
            )
        metric = {"name": str(last.get("metric_name") or "")}
        yield gauge(
            "held_out_metric", "Metric of the last evaluation.", [(metric, last.get("metric"))]
        )
        yield gauge("held_out_loss", "Loss of the last evaluation.", [({}, last.get("loss"))])
        yield gauge("mean_rank", "Mean rank of the last round.", [({}, last.get("mean_rank"))])
        yield gauge("epsilon", "Largest epsilon that a client has spent.", [({}, state.epsilon)])
        yield counter("rounds_finished", "Rounds of training that are done.", [({}, state.rounds)])
        for name, meaning in (
            ("air_seconds", "Modelled time on the air."),
            ("late_deliveries", "Adapters that came too late."),
        ):
            yield counter(name, meaning, [({}, state.totals[name])])

    def _clients(self, state: RunState) -> Iterator[Any]:
        found = [status.get("state") for status in state.clients.values()]
        counts: list[Sample] = [({"state": s}, float(found.count(s))) for s in STATES]
        yield gauge("clients", "Clients by state.", counts)
        by_status = (
            (gauge, "client_last_seen_timestamp_seconds", "Time of its last frame.", "last_seen"),
            (
                gauge,
                "client_answer_seconds",
                "From the last request to its answer.",
                "answer_seconds",
            ),
            (gauge, "client_misses", "Deadlines missed in this round, and times lost.", "misses"),
        )
        for family, name, meaning, key in by_status:
            yield family(
                name, meaning, [({"client": c}, s.get(key)) for c, s in state.clients.items()]
            )
        wire: list[Sample] = [
            ({"client": c, "direction": way}, finite(s.get(f"wire_{way}")))
            for c, s in state.clients.items()
            for way in ("up", "down")
        ]
        yield counter("client_wire_bytes", "Bytes on the wire since the run began.", wire)
        by_record = (
            ("client_link_rate_bps", "Rate of its downlink, as it reported.", "rate_bps"),
            ("client_rank", "Mean rank that it was given.", "mean_rank"),
            ("client_epsilon", "Epsilon that it has spent.", "epsilon"),
            ("client_held_out_metric", "Its metric of the last evaluation.", "metric"),
        )
        for name, meaning, key in by_record:
            records = state.last.get("clients") or {}
            yield gauge(name, meaning, [({"client": c}, r.get(key)) for c, r in records.items()])


def gauge(name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], object]]) -> Any:
    """Return a metric family of values that go up and down."""
    from prometheus_client.core import GaugeMetricFamily

    return _family(GaugeMetricFamily, name, meaning, samples)


def counter(name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], object]]) -> Any:
    """Return a metric family of sums."""
    from prometheus_client.core import CounterMetricFamily

    return _family(CounterMetricFamily, name, meaning, samples)


def _family(
    kind: Any, name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], object]]
) -> Any:
    """Build a metric family; values that are unknown are left out."""
    known = [(labels, value) for labels, raw in samples if (value := finite(raw)) is not None]
    names = list(known[0][0]) if known else []
    family = kind(f"fedlora_{name}", meaning, labels=names)
    for labels, value in known:
        family.add_metric([labels[label] for label in names], value)
    return family


@contextmanager
def prometheus(scenario: Scenario) -> Iterator[PrometheusObserver]:
    """Serve a run's metrics until the context ends.

    Raises
    ------
    FedloraError
        When ``prometheus_client`` is not installed or the address cannot be bound.
    """
    observer = PrometheusObserver(scenario)
    host, port = scenario.observe.prometheus_host, scenario.observe.prometheus_port
    with metrics_server(observer, host, port, "observe.prometheus_port"):
        yield observer


@contextmanager
def metrics_server(collector: Any, host: str, port: int, key: str) -> Iterator[None]:
    """Serve what a collector has, and figures of this process, until the context ends.

    Parameters
    ----------
    collector
        Whose ``collect`` returns metric families.
    host, port
        Where to listen.
    key
        By which the port was set.

    Raises
    ------
    FedloraError
        When ``prometheus_client`` is not installed or the address cannot be bound.
    """
    try:
        from prometheus_client import (
            CollectorRegistry,
            PlatformCollector,
            ProcessCollector,
            start_http_server,
        )
    except ImportError:
        raise FedloraError(
            f"{key} is set and prometheus_client is not installed; install fedlora[prometheus], or "
            "set it to 0"
        ) from None
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise FedloraError(
            f"cannot serve metrics on {host}:{port} ({error.strerror or error}); set "
            f"{key} to a free port, or to 0 for none"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
