"""What Flower shows of a run that ends for a reason of the user's."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest

import fedlora.server.flower.run
from fedlora.errors import FedloraError
from fedlora.server.app import RunEnded, main


@contextmanager
def in_a_context():
    """As Flower's typed contexts do, contextlib puts the traceback back on its way out."""
    yield


def test_flower_logs_the_sentence_of_an_ended_run_without_frames(monkeypatch):
    def refuse(*_: object) -> None:
        raise FedloraError("0 of 2 clients connected; start more SuperNodes")

    class Context:
        run_config, run_id = {}, 1

    monkeypatch.setattr(fedlora.server.flower.run, "run_over_flower", refuse)
    with pytest.raises(RunEnded) as caught, in_a_context():
        main(None, Context())
    error = caught.value
    shown = logging.Formatter().formatException((type(error), error, error.__traceback__))
    assert shown == "fedlora.server.app.RunEnded: 0 of 2 clients connected; start more SuperNodes"
    assert error.__cause__ is None
