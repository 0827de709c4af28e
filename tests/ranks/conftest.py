from __future__ import annotations

import pytest

from fedlora.ranks import Projection, RankSpace


def decoder_space(layers: int, width: int, hidden: int, r_max: int, r_min: int = 0) -> RankSpace:
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.out_proj": (width, width),
        "fc1": (width, hidden),
        "fc2": (hidden, width),
    }
    projections = tuple(
        Projection(name, layer, d_in, d_out)
        for layer in range(layers)
        for name, (d_in, d_out) in shapes.items()
    )
    return RankSpace(projections, r_max, r_min)


@pytest.fixture(scope="session")
def opt_1_3b() -> RankSpace:
    return decoder_space(layers=24, width=2048, hidden=8192, r_max=16)


@pytest.fixture(scope="session")
def opt_125m() -> RankSpace:
    return decoder_space(layers=12, width=768, hidden=3072, r_max=16)


@pytest.fixture(scope="session")
def small() -> RankSpace:
    return decoder_space(layers=2, width=8, hidden=32, r_max=8)
