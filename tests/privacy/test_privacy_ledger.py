from __future__ import annotations

import itertools
import json
import math
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fedlora.config import ClientLimit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge, calibrate_sigma, upload_cost
from fedlora.privacy.accounting.rdp import rho
from fedlora.privacy.ledger import BudgetSpentError, Ledger, store as module
from fedlora.privacy.ledger.records import RUNS_KEPT
from fedlora.storage import journal

LIMIT = ClientLimit(epsilon=8.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice" / "ledger"


def ids(ledger: Ledger, samples: int) -> list[int]:
    return ledger.sample_ids(str(number).encode() for number in range(samples))


def charged(path: Path, sigmas: list[float]) -> bytes:
    """Write a ledger with these charges of one sample, and return its journal as it was left."""
    with Ledger(path, "alice") as ledger:
        for sigma in sigmas:
            ledger.charge([7], Charge.gaussian(sigma))
    return path.read_bytes()


def test_spending_survives_restarts_and_is_never_rounded_down(path: Path) -> None:
    generator = np.random.default_rng(0)
    spent: Counter[int] = Counter()
    for _ in range(5):
        with Ledger(path, "alice") as ledger:
            samples = ids(ledger, 20)
            for _ in range(30):
                chosen = generator.choice(20, size=4, replace=False)
                sigma = float(generator.uniform(0.3, 40))
                ledger.charge([samples[i] for i in chosen], Charge.gaussian(sigma))
                for i in chosen:
                    spent[i] += 2 / Fraction(sigma) ** 2
    with Ledger(path, "alice") as ledger:
        largest = max(spent.values())
        assert Fraction(ledger.rho) >= largest
        assert ledger.rho == pytest.approx(float(largest), rel=1e-12)
        assert ledger.epsilon(1e-5, tight=True) < ledger.epsilon(1e-5)


def test_the_budget_pays_for_the_plan_and_for_nothing_beyond(path: Path) -> None:
    sigma = calibrate_sigma(LIMIT.epsilon, LIMIT.delta, 10)
    with Ledger(path, "alice", LIMIT) as ledger:
        samples = ids(ledger, 6)
        ledger.check_plan(dict.fromkeys(samples, 10 * upload_cost(sigma)))
        with pytest.raises(FedloraError, match=r"from epsilon 0 to 8\.\d+, .* plan fewer rounds"):
            ledger.check_plan(dict.fromkeys(samples, 11 * upload_cost(sigma)))
        for _ in range(10):
            ledger.charge(samples[:3], Charge.gaussian(sigma))
            ledger.charge(samples[3:], Charge.gaussian(sigma))
    with Ledger(path, "alice", LIMIT) as ledger:
        spent = ledger.rho
        assert ledger.epsilon(LIMIT.delta) <= LIMIT.epsilon
        for noise in (sigma, 1e3 * sigma):
            with pytest.raises(BudgetSpentError, match=r"has spent epsilon 8 of its .* 8, which"):
                ledger.charge(samples[2:4], Charge.gaussian(noise))
        assert ledger.rho == spent


def test_a_tight_limit_counts_the_exact_epsilon(path: Path) -> None:
    sigma = calibrate_sigma(8.0, 1e-5, 3, tight=True)
    with Ledger(path, "alice", ClientLimit(epsilon=8.0, tight=True)) as ledger:
        for _ in range(3):
            ledger.charge([1], Charge.gaussian(sigma))
        with pytest.raises(BudgetSpentError):
            ledger.charge([1], Charge.gaussian(sigma))
    with Ledger(path, "alice", LIMIT) as ledger, pytest.raises(FedloraError, match="beyond"):
        ledger.check_plan({2: 3 * upload_cost(sigma)})


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, 1.9])
def test_a_server_that_asks_for_too_little_noise_does_not_get_it(path: Path, sigma: float) -> None:
    limit = ClientLimit(epsilon=8.0, min_sigma=2.0)
    with Ledger(path, "alice", limit) as ledger:
        for refuse in (
            lambda: ledger.charge([1], Charge(rho=1.0, sigma=sigma)),
            lambda: ledger.check_plan({}, sigma=sigma),
        ):
            with pytest.raises(FedloraError, match="privacy-min-sigma 2; raise"):
                refuse()
        assert ledger.rho == 0.0
    with Ledger(path, "alice") as ledger, pytest.raises(FedloraError, match="sigma is 0"):
        ledger.charge([1], Charge.gaussian(0.0))


def test_a_replayed_step_and_a_sample_that_occurs_twice_are_charged_again(path: Path) -> None:
    with Ledger(path, "alice") as ledger:
        ledger.charge([1, 2], Charge.gaussian(2.0))
        ledger.charge([1, 2], Charge.gaussian(2.0))
        assert ledger.rho == pytest.approx(2 * rho(2.0))
        ledger.charge([3, 3, 3], Charge.gaussian(2.0))
        assert ledger.rho == pytest.approx(3 * rho(2.0))
        ledger.charge([3, 3, 3, 4], Charge(epsilon=0.5))
    with Ledger(path, "alice") as ledger:
        assert ledger.rho == pytest.approx(3 * rho(2.0))
        assert ledger.label_epsilon == pytest.approx(1.5) and ledger.label_epsilon_of(4) == 0.5


def test_identifiers_follow_the_content_and_tell_nothing(path: Path, tmp_path: Path) -> None:
    with Ledger(path, "alice") as ledger:
        a, b, again = ledger.sample_ids([b"a", b"b", b"a"])
        assert len({a, b, again}) == 3
    with Ledger(path, "alice") as ledger:
        assert ledger.sample_ids([b"b", b"a"]) == [b, a]
    with Ledger(tmp_path / "other", "alice") as other:
        assert not {a, b, again} & set(other.sample_ids([b"a", b"b", b"a"]))


def test_merging_charges_into_sums_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_JOURNAL_BYTES_MIN", 500)
    sizes = []
    with Ledger(path, "alice") as ledger:
        samples = ids(ledger, 1250)
        ledger.charge(samples, Charge.gaussian(3.0))
        for upload in range(300):
            ledger.charge(samples[4 * upload : 4 * upload + 40], Charge.gaussian(5.0))
            sizes.append(path.stat().st_size)
        spent = ledger.rho
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))
    with Ledger(path, "alice") as ledger:
        assert ledger.rho == spent == pytest.approx(rho(3.0) + 10 * rho(5.0))


def test_two_processes_cannot_use_one_ledger(path: Path) -> None:
    with Ledger(path, "alice"), pytest.raises(FedloraError, match="in use by another process"):
        Ledger(path, "alice")
    ledger = Ledger(path, "alice")
    ledger.close()
    ledger.close()
    Ledger(path, "alice").close()


def test_another_clients_ledger_is_refused(path: Path) -> None:
    charged(path, [2.0])
    with pytest.raises(FedloraError, match="is that of client alice, not bob"):
        Ledger(path, "bob")


def test_a_journal_that_lost_charges_is_refused(path: Path) -> None:
    charged(path, [2.0])
    old = path.read_bytes()
    charged(path, [2.0])
    path.write_bytes(old)
    with pytest.raises(FedloraError, match="ends at charge 1 but charge 2 was booked"):
        Ledger(path, "alice")


def test_a_journal_that_is_gone_is_refused_until_its_mark_is_deleted_too(path: Path) -> None:
    charged(path, [2.0])
    path.unlink()
    with pytest.raises(FedloraError, match=r"is gone although 1 charges .* ledger\.mark too"):
        Ledger(path, "alice")
    path.with_name("ledger.mark").unlink()
    with Ledger(path, "alice") as ledger:
        assert ledger.rho == 0.0


def test_a_missing_or_damaged_mark_is_refused(path: Path) -> None:
    charged(path, [2.0])
    mark = path.with_name("ledger.mark")
    content = mark.read_bytes()
    mark.unlink()
    with pytest.raises(FedloraError, match="is gone; restore"):
        Ledger(path, "alice")
    mark.write_bytes(b"x" * len(content))
    with pytest.raises(FedloraError, match="is damaged; restore"):
        Ledger(path, "alice")
    path.unlink()
    with pytest.raises(FedloraError, match="is damaged; restore"):
        Ledger(path, "alice")


def test_one_torn_slot_of_the_mark_does_not_matter(path: Path) -> None:
    charged(path, [2.0, 2.0, 2.0])
    mark = path.with_name("ledger.mark")
    content = mark.read_bytes()
    newest = max((0, 1), key=lambda slot: content[32 * slot : 32 * slot + 20])
    mark.write_bytes(content[: 32 * newest] + b"x" * 16 + content[32 * newest + 16 :])
    with Ledger(path, "alice") as ledger:
        assert ledger.rho == pytest.approx(3 * rho(2.0))


def test_a_clock_that_went_back_is_refused(path: Path) -> None:
    clock = Clock()
    with Ledger(path, "alice", clock=clock) as ledger:
        clock.now += 1000
        ledger.charge([1], Charge.gaussian(2.0))
        clock.now -= 59
        ledger.charge([1], Charge.gaussian(2.0))
        clock.now -= 60
        with pytest.raises(FedloraError, match=r"the clock is 119 s behind .* set the clock"):
            ledger.charge([1], Charge.gaussian(2.0))
    with pytest.raises(FedloraError, match="the clock is 119 s behind"):
        Ledger(path, "alice", clock=clock)
    clock.now += 120
    with Ledger(path, "alice", clock=clock) as ledger:
        assert ledger.rho == pytest.approx(2 * rho(2.0))


def with_charges(path: Path, count: int) -> list[int]:
    """Leave a journal of uncompacted charges; return where its lines begin, and its end."""
    with Ledger(path, "alice") as ledger:
        for _ in range(count):
            ledger.charge([1, 2, 3], Charge.gaussian(2.0))
        content = path.read_bytes()
    path.write_bytes(content)
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    return [0, *ends]


def test_any_flipped_bit_is_found(path: Path) -> None:
    with_charges(path, 3)
    content = path.read_bytes()
    mark = path.with_name("ledger.mark").read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(content), size=120, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(FedloraError, match=r"damaged|cut short"):
            Ledger(path, "alice")
        path.with_name("ledger.mark").write_bytes(mark)


def test_a_torn_last_line_is_dropped_only_if_its_charge_was_never_confirmed(path: Path) -> None:
    lines = with_charges(path, 3)
    content = path.read_bytes()
    mark = path.with_name("ledger.mark")
    confirmed = mark.read_bytes()
    for cut in range(lines[-2], lines[-1]):
        mark.write_bytes(confirmed)
        path.write_bytes(content[:cut])
        with pytest.raises(FedloraError, match="ends at charge 2 but charge 3 was booked"):
            Ledger(path, "alice")
    mark.unlink()
    path.unlink()
    with_charges(path, 2)  # the mark stands at 2
    salted = path.read_bytes()
    body = b'{"seq":3,"time":%d,"rho":0.5,"ids":[1]}' % 4e9
    line = b"%08x %s\n" % (zlib.crc32(body), body)
    for cut in range(len(line)):
        path.write_bytes(salted + line[:cut])
        with Ledger(path, "alice") as ledger:
            assert ledger.rho == pytest.approx(2 * rho(2.0))
    with pytest.raises(FedloraError, match="clock"):  # a whole line counts, here one of the future
        path.write_bytes(salted + line)
        Ledger(path, "alice")


@pytest.mark.parametrize(
    "text", ["", "not a ledger\n", "00000000 {}\n", '{"format": "fedlora-privacy-ledger/1"}\n']
)
def test_a_file_that_is_no_ledger_is_refused(path: Path, text: str) -> None:
    charged(path, [2.0])
    path.write_text(text)
    with pytest.raises(FedloraError, match="is damaged"):
        Ledger(path, "alice")


@pytest.mark.parametrize(
    "changes", [{"format": "x/9"}, {"salt": 3}, {"samples": 2}, {"samples": "a"}, {"seq": None}]
)
def test_a_header_that_makes_no_sense_is_refused(path: Path, changes: dict) -> None:
    charged(path, [])
    header = json.loads(path.read_text().partition(" ")[2])
    body = json.dumps(header | changes).encode()
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
    with pytest.raises(FedloraError, match="damaged"):
        Ledger(path, "alice")


def test_a_path_that_cannot_be_written_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedloraError, match="cannot open ledger"):
        Ledger(tmp_path / "file" / "ledger", "alice")
    with pytest.raises(FedloraError, match="closed"):
        ledger = Ledger(tmp_path / "ledger", "alice")
        ledger.close()
        ledger.charge([1], Charge.gaussian(2.0))


def test_a_ledger_that_is_closed_during_a_charge_is_whole_and_stays_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_JOURNAL_BYTES_MIN", 1)
    replace, inside, go_on = journal.replace, threading.Event(), threading.Event()

    def slow_replace(path: Path, lines: Iterable[bytes]) -> None:
        if threading.current_thread().name == "worker":
            inside.set()
            assert go_on.wait(30.0)
        replace(path, lines)

    monkeypatch.setattr(journal, "replace", slow_replace)
    ledger = Ledger(path, "alice")

    def charge_until_merged() -> None:
        while not go_on.is_set():
            ledger.charge([7], Charge.gaussian(2.0))

    worker = threading.Thread(target=charge_until_merged, name="worker")
    worker.start()
    assert inside.wait(30.0)
    closing = threading.Thread(target=ledger.close)
    closing.start()
    closing.join(0.3)
    with pytest.raises(FedloraError, match="in use"):
        Ledger(path, "alice")
    go_on.set()
    for thread in (worker, closing):
        thread.join(30.0)
        assert not thread.is_alive()
    with pytest.raises(FedloraError, match="closed"):
        ledger.charge([7], Charge.gaussian(2.0))
    with Ledger(path, "alice") as again:
        spent = again.rho
        assert spent == pytest.approx(ledger.rho, rel=1e-12)
        again.charge([7], Charge.gaussian(2.0))
    with Ledger(path, "alice") as last:
        assert last.rho == pytest.approx(spent + rho(2.0), rel=1e-12)


def of_an_earlier_release(path: Path, contents: list[bytes]) -> None:
    """Leave a ledger as the release before wrote it, in which these records spent 3.0."""
    with Ledger(path, "alice") as ledger:
        ledger.charge(ledger.sample_ids(contents), Charge.gaussian(math.sqrt(2 / 3.0)))
    with Ledger(path, "alice"):
        pass  # merges the charges
    header, *lines = path.read_bytes().splitlines(keepends=True)
    body = header.split(b" ", 1)[1].strip().replace(b"ledger/2", b"ledger/1")
    path.write_bytes(b"".join([b"%08x %s\n" % (zlib.crc32(body), body), *lines]))


def test_an_earlier_releases_ledger_counts_on_where_all_its_records_are_known(path: Path) -> None:
    of_an_earlier_release(path, [b"a", b"b"])
    for _ in range(2):
        with Ledger(path, "alice", LIMIT) as ledger:
            known = ledger.sample_ids([b"c", b"b", b"a"])
            assert ledger.rho == pytest.approx(3.0)
            with pytest.raises(BudgetSpentError):
                ledger.charge(known[1:2], Charge.gaussian(1.0))
    with Ledger(path, "alice") as ledger:  # from now on a record may go
        ledger.sample_ids([b"a"])


def test_an_earlier_releases_ledger_never_starts_at_nothing_for_what_it_may_know_otherwise(
    path: Path,
) -> None:
    of_an_earlier_release(path, [b"(1, 2)", b"(3, 4)"])  # records that went by their tokens
    for _ in range(2):
        with Ledger(path, "alice") as ledger, pytest.raises(FedloraError, match="2 samples that"):
            ledger.sample_ids([b"one two", b"three four"])


def test_what_is_counted_at_no_cost_spends_nothing_and_pays_for_nothing(path: Path) -> None:
    with Ledger(path, "alice") as ledger:
        one, two = ids(ledger, 2)
        ledger.charge([two], Charge.gaussian(2.0), "run")
        before = ledger.spent()[two]
        for _ in range(3):
            ledger.note([one, two], "run")
    with Ledger(path, "alice") as ledger:
        assert ledger.spent() == {one: 0.0, two: before}
        assert ledger.done("run", one) == (3, 0.0)
        assert ledger.paid("run", [one, two]).records == {two}


def test_what_a_run_has_uploaded_is_known_after_restarts_until_others_have_come(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_JOURNAL_BYTES_MIN", 500)
    with Ledger(path, "alice") as ledger:
        samples = ids(ledger, 3)
        ledger.charge(samples, Charge.gaussian(2.0))  # no run's plan counts this
        for _ in range(30):
            ledger.charge(samples[:2], Charge.gaussian(2.0), "first")
        ledger.charge(samples[1:], Charge.gaussian(1.0), "second")
    for _ in range(2):
        with Ledger(path, "alice") as ledger:
            assert ledger.done("first", samples[0]) == (30, pytest.approx(30 * rho(2.0)))
            assert ledger.done("first", samples[2]) == ledger.done("", samples[0]) == (0, 0.0)
            assert ledger.done("second", samples[1]) == (1, pytest.approx(rho(1.0)))
            assert ledger.rho == pytest.approx(31 * rho(2.0) + rho(1.0))
    with Ledger(path, "alice") as ledger:
        for number in range(RUNS_KEPT - 1):
            ledger.charge(samples[:1], Charge.gaussian(2.0), f"later {number}")
        assert ledger.done("first", samples[0]) == (0, 0.0)
        assert ledger.done("second", samples[1])[0] == 1
    with Ledger(path, "alice") as ledger:
        assert ledger.done("second", samples[1])[0] == 1
