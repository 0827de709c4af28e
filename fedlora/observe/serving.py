"""How ``fedlora serve`` goes: for Prometheus, and as lines of ``fedlora top``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedlora.observe.prometheus import counter, gauge, metrics_server
from fedlora.report import RunFolder, bits_text, count_text, seconds_text
from fedlora.storage import read_object

_FRESH_S = 5.0
"""A file that was written so lately is of a server that lives; it writes one each second."""


class ServingMetrics:
    """Metric families of what is served, made when they are asked for.

    Parameters
    ----------
    told
        Returns the present figures.
    """

    def __init__(self, told: Callable[[], Mapping[str, Any]]) -> None:
        self._told = told

    def collect(self) -> Iterable[Any]:
        """Return the metric families; ``prometheus_client`` calls it in its own thread."""
        now = self._told()
        cache = now["cache"]
        for name, meaning, value in (
            ("sessions", "Sessions of generation that are open.", now["sessions"]),
            ("streams", "Devices that are connected.", now["streams"]),
            ("tokens_per_second", "Tokens written a second, lately.", now["tokens_per_second"]),
            ("cache_tokens", "Tokens whose keys and values are held.", cache["tokens"]),
            ("cache_most_tokens", "Tokens that may be held.", cache["most_tokens"]),
            ("cache_bytes", "Bytes of keys and values.", cache["bytes"]),
        ):
            yield gauge(f"generation_{name}", meaning, [({}, value)])
        for name, meaning in (
            ("first_token", "From a prompt to its answer."),
            ("between_tokens", "From one token of a text to the next."),
        ):
            times = now[f"{name}_s"] or {}
            shares = {"0.5": times.get("median"), "0.95": times.get("p95")}
            labelled = [({"quantile": share}, value) for share, value in shares.items()]
            yield gauge(f"generation_{name}_seconds", meaning, labelled)
        totals = now["totals"]
        for name, meaning in (
            ("air_seconds", "Modelled time on the air."),
            ("energy_joules", "Modelled transmit energy, both ends."),
        ):
            yield counter(f"generation_{name}", meaning, [({}, totals[name])])
        for name, meaning in (
            ("tokens", "Tokens written."),
            ("prompt_tokens", "Tokens of prompts."),
            ("exchanges", "Requests that were answered or refused."),
            ("refused", "Requests that were refused."),
        ):
            by_client = [({"client": c}, own[name]) for c, own in now["clients"].items()]
            yield counter(f"generation_{name}", meaning, by_client)
        bits = [
            ({"client": c, "direction": way}, own[f"bits_{way}"])
            for c, own in now["clients"].items()
            for way in ("up", "down")
        ]
        yield counter("generation_payload_bits", "Activations and representations.", bits)


@contextmanager
def serving_metrics(told: Callable[[], Mapping[str, Any]], port: int) -> Iterator[None]:
    """Serve the figures to Prometheus on a port of loopback until the context ends; 0: on none.

    Raises
    ------
    FedloraError
        When ``prometheus_client`` is not installed or the port is taken.
    """
    if not port:
        yield
        return
    with metrics_server(ServingMetrics(told), "127.0.0.1", port, "--prometheus-port"):
        yield


def serving_lines(folder: RunFolder) -> list[str]:
    """Return what ``fedlora top`` says of servers that live; none where there is none."""
    lines = []
    for place in sorted(folder.path.glob(folder.serving("*").name)):
        found = read_object(place)
        if found is None or time.time() - place.stat().st_mtime > _FRESH_S:
            continue
        cache, totals = found["cache"], found["totals"]
        first = found["first_token_s"]
        told = [
            f"served on port {place.stem.removeprefix('serving-')}: {found['streams']} devices",
            f"{found['sessions']} sessions",
            f"{count_text(found['tokens_per_second'])} tokens/s",
            *([f"first token after {seconds_text(first['median'])}"] if first else ()),
            f"cache {count_text(cache['tokens'])} of {count_text(cache['most_tokens'])} tokens",
            f"up {bits_text(totals['bits_up'])}, down {bits_text(totals['bits_down'])}",
        ]
        lines.append(", ".join(told))
    return lines
