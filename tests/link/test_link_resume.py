"""Resume secrets, and the pauses between attempts to come back."""

from __future__ import annotations

import pytest

from fedlora.errors import FedloraError
from fedlora.link.stream import Backoff, ResumeSecrets
from fedlora.link.stream.session_secrets import REMEMBERED_S


def test_each_return_issues_a_new_secret_and_a_confirmed_one_replaces_the_others() -> None:
    secrets = ResumeSecrets()
    session, first = secrets.open("a")
    assert secrets.check(first) == session
    _, second = secrets.redeem(first, "a", 3)
    assert secrets.check(first) == secrets.check(second) == session
    secrets.confirm(session)
    with pytest.raises(FedloraError, match="replaced"):
        secrets.check(first)
    assert secrets.redeem(second, "a", 3)[0] == session


def test_a_session_is_another_clients_or_over_or_ahead() -> None:
    now = 0.0
    secrets = ResumeSecrets(clock=lambda: now)
    session, secret = secrets.open("a")
    with pytest.raises(FedloraError, match="that of client a, not b"):
        secrets.redeem(secret, "b", 0)
    _, secret = secrets.redeem(secret, "a", 5)
    with pytest.raises(FedloraError, match="only one process"):
        secrets.redeem(secret, "a", 4)
    secrets.void(session, "it missed 3 deadlines")
    secrets.void(session, "another reason")
    with pytest.raises(FedloraError, match="over: it missed 3 deadlines"):
        secrets.check(secret)
    now = REMEMBERED_S
    secrets.open("b")  # which clears what is long over
    with pytest.raises(FedloraError, match="unknown"):
        secrets.check(secret)


def test_no_secret_is_stored_and_each_has_256_bits() -> None:
    secrets = ResumeSecrets()
    _, secret = secrets.open("a")
    random = secret.partition(".")[2]
    assert len(random) * 6 >= 256
    assert random not in repr(vars(secrets))


@pytest.mark.parametrize("forge", ["", ".", "x.y", "\ud800.\ud800"])
def test_a_guess_is_unknown(forge: str) -> None:
    secrets = ResumeSecrets()
    secrets.open("a")
    with pytest.raises(FedloraError, match="unknown"):
        secrets.check(forge)


def test_pauses_double_up_to_the_longest_and_end_in_time() -> None:
    now = 0.0
    backoff = Backoff(20.0, first_s=0.1, longest_s=4.0, clock=lambda: now)
    pauses = []
    while (pause_s := backoff.next_s()) is not None:
        pauses.append(pause_s)
        now += pause_s
    assert now == pytest.approx(20.0)
    for number, pause_s in enumerate(pauses[:-1]):
        assert pause_s == pytest.approx(min(0.1 * 2**number, 4.0), rel=0.21)
    backoff.reset()
    assert backoff.next_s() == pytest.approx(0.1, rel=0.21)
    assert Backoff(0.0).next_s() is None
