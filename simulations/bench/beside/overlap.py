"""What ``train.overlap`` gains: the same batch in halves and whole, step by step, over slow links.

A frame is held for its tensors' bits over the rate, each way, in real time: over a link of each
client's own, and over one that all clients share, which carries a frame a direction at a time.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext

from clients.edge_client import EdgeClient
from fedlora.link import Frame
from simulations.bench.beside.runs import Wrap, beside
from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.speed import contest_steps
from simulations.bench.workload import Load
from simulations.in_process import Handler

RATE_BPS = 20e6
WHOLE = "whole"


def held(*, shared: bool) -> Wrap:
    """Return a wrapper of clients whose link holds each frame for its bits over ``RATE_BPS``."""
    down: AbstractContextManager[object] = threading.Lock() if shared else nullcontext()
    up: AbstractContextManager[object] = threading.Lock() if shared else nullcontext()

    def wrap(client: EdgeClient) -> Handler:
        def handle(request: Frame) -> Frame:
            with down:
                time.sleep(_seconds(request))
            reply = client.handle(request)
            with up:
                time.sleep(_seconds(reply))
            return reply

        return handle

    return wrap


def _seconds(frame: Frame) -> float:
    return 8 * sum(tensor.nbytes for tensor in frame.tensors.values()) / RATE_BPS


def overlapped(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Compare a step in halves with a whole one, in-process and over slow links."""
    links: dict[str, Wrap] = {
        "in_process": lambda client: client.handle,
        "own_links_20_mbit": held(shared=False),
        "shared_link_20_mbit": held(shared=True),
    }
    found = []
    for name, wrap in links.items():
        contest = _contest(context, model, wrap, tick)
        found += [
            Figure(f"{name}.halves", contest.median_seconds(SPLIT), "s/step"),
            Figure(
                f"{name}.halves_to_whole",
                contest.speed_ratio(SPLIT, WHOLE),
                "ratio",
                None,
                None,
                *contest.ratio_quartiles(SPLIT, WHOLE),
            ),
            Figure(f"{name}.loss_difference", contest.loss_difference, "relative"),
        ]
    return found


def _contest(context: Context, model: str, wrap: Wrap, tick: Tick) -> Contest:
    settings = context.settings
    load = Load(
        context.model(model),
        "causal_lm",
        settings.overlap_clients,
        settings.speed_rows,
        settings.speed_length,
    )
    own, whole = ["train.overlap=true"], {WHOLE: list[str]()}
    return beside(settings, load, tick, own, whole, workers=load.clients, wrap=wrap)


def ticks(settings: Settings) -> int:
    """Return the steps of the three contests."""
    return 3 * contest_steps(settings)
