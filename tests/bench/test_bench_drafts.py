"""Drafts without a second model bring what the literature's texts allow."""

from __future__ import annotations

import pytest

from simulations.bench.generation.drafts import TOKENIZERS, tokens_an_exchange


@pytest.mark.parametrize("model", TOKENIZERS)
@pytest.mark.usefixtures("shared")
def test_what_a_client_wrote_before_brings_more_tokens_an_exchange(model):
    alone, known = tokens_an_exchange(model)
    assert known.met
    assert 1.1 < alone.value < known.value - 0.3
