"""Single-use tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fedlora.errors import FedloraError
from fedlora.link.stream import TokenStore


def test_a_token_is_redeemed_once_and_names_its_grantee() -> None:
    store = TokenStore()
    token = store.grant("node 7", 60.0)
    assert store.check(token) == "node 7"
    assert store.redeem(token) == "node 7"
    with pytest.raises(FedloraError, match="used before"):
        store.redeem(token)
    with pytest.raises(FedloraError, match="used before"):
        store.check(token)


def test_only_one_of_many_threads_redeems_a_token() -> None:
    store = TokenStore()

    def attempt(token: str) -> bool:
        try:
            store.redeem(token)
        except FedloraError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            assert sum(pool.map(attempt, [store.grant("a", 60.0)] * 16)) == 1


def test_an_expired_token_is_refused() -> None:
    now = 0.0
    store = TokenStore(clock=lambda: now)
    token = store.grant("a", 5.0)
    now = 5.0
    with pytest.raises(FedloraError, match="expired"):
        store.redeem(token)
    store.grant("b", 5.0)  # which clears what has expired
    with pytest.raises(FedloraError, match="unknown"):
        store.redeem(token)


@pytest.mark.parametrize("forge", [str.upper, lambda t: t[:-1], lambda t: t + "A", lambda t: ""])
def test_a_changed_token_is_unknown_and_leaves_the_true_one_valid(forge: object) -> None:
    assert callable(forge)
    store = TokenStore()
    token = store.grant("a", 60.0)
    with pytest.raises(FedloraError, match="unknown"):
        store.redeem(forge(token))
    assert store.redeem(token) == "a"


def test_the_store_keeps_no_secret_and_secrets_have_256_bits() -> None:
    store = TokenStore()
    token = store.grant("a", 60.0)
    secret = token.partition(".")[2]
    assert len(secret) * 6 >= 256
    assert secret not in repr(vars(store))
