"""``fedlora parity`` compares what can be compared, and refuses the rest."""

from __future__ import annotations

import pytest

from fedlora.errors import FedloraError
from simulations.studies.parity.command import parity


@pytest.mark.parametrize(
    ("noise", "named"),
    [
        (["privacy.epsilon=8"], r"privacy\.epsilon is 8\.0.*needs privacy\.epsilon=none"),
        (["privacy.epsilon=none", "privacy.sigma=2"], r"privacy\.sigma is 2\.0.*sigma=none"),
    ],
)
def test_a_run_with_noise_is_refused_with_key_and_value(tmp_path, noise, named):
    with pytest.raises(FedloraError, match=named):
        parity("quickstart", set_=noise, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
