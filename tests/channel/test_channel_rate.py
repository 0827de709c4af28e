"""Rates against closed forms, the standard's tables and link-level simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedlora.channel.rate import NR_64QAM, NR_256QAM, ModulationCoding, Shannon, rate_rule
from fedlora.errors import FedloraError

RULES = [Shannon(), Shannon(3.0), ModulationCoding(NR_64QAM), ModulationCoding(NR_256QAM, 1.0)]


@pytest.mark.parametrize("snr_db", [-120.0, -10.0, 0.0, 7.3, 40.0])
def test_shannon_is_the_capacity_of_the_gaussian_channel(snr_db: float) -> None:
    expected = 2e6 * math.log1p(10 ** (snr_db / 10)) / math.log(2)
    assert Shannon().rate_bps(snr_db, 2e6) == pytest.approx(expected, rel=1e-12)


def test_a_gap_costs_as_much_snr() -> None:
    assert Shannon(3.0).rate_bps(13.0, 1e6) == pytest.approx(Shannon().rate_bps(10.0, 1e6))


@pytest.mark.parametrize("snr_db", [-150.0, -30.0, 3.0, 90.0, 5000.0])
@pytest.mark.parametrize("gap_db", [0.0, 2.5])
def test_shannon_inverts(snr_db: float, gap_db: float) -> None:
    rule = Shannon(gap_db)
    assert rule.snr_db(rule.rate_bps(snr_db, 1e6), 1e6) == pytest.approx(snr_db, abs=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rate_never_falls_with_snr_and_never_is_zero(rule: Shannon) -> None:
    rates = np.array([rule.rate_bps(snr_db, 1e6) for snr_db in np.arange(-60, 60, 0.05)])
    assert np.all(rates > 0)
    assert np.all(np.diff(rates) >= 0)


@pytest.mark.parametrize("rule", RULES[2:], ids=["64qam", "256qam"])
def test_a_table_inverts_to_the_least_snr_of_the_rate(rule: ModulationCoding) -> None:
    for snr_db in np.arange(-30, 30, 0.37):
        rate = rule.rate_bps(snr_db, 1e6)
        least_db = rule.snr_db(rate, 1e6)
        assert least_db <= snr_db + 1e-9
        assert rule.rate_bps(least_db + 1e-9, 1e6) == pytest.approx(rate)
        assert rule.rate_bps(least_db - 1e-6, 1e6) < rate


@pytest.mark.parametrize("table", [NR_64QAM, NR_256QAM])
def test_tables_rise_and_stay_below_capacity(table: tuple) -> None:
    assert len(table) == 15
    for row, following in itertools.pairwise(table):
        assert row.efficiency < following.efficiency
        assert row.threshold_db < following.threshold_db
    for row in table:
        gap_db = row.threshold_db - Shannon().snr_db(row.efficiency, 1.0)
        assert 1.0 < gap_db < 3.0


# 3GPP TS 38.214, tables 5.2.2.1-2 and 5.2.2.1-3, column "efficiency".
PUBLISHED_64QAM = """
    0.1523 0.2344 0.3770 0.6016 0.8770 1.1758 1.4766 1.9141 2.4063 2.7305 3.3223 3.9023 4.5234
    5.1152 5.5547"""
PUBLISHED_256QAM = """
    0.1523 0.3770 0.8770 1.4766 1.9141 2.4063 2.7305 3.3223 3.9023 4.5234 5.1152 5.5547 6.2266
    6.9141 7.4063"""


@pytest.mark.parametrize(
    ("table", "published"), [(NR_64QAM, PUBLISHED_64QAM), (NR_256QAM, PUBLISHED_256QAM)]
)
def test_efficiencies_are_those_of_the_standard(table: tuple, published: str) -> None:
    expected = [float(value) for value in published.split()]
    assert [row.efficiency for row in table] == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("name", ["nr_64qam", "nr_256qam"])
def test_a_table_carries_nine_tenths_of_the_best_row(name: str) -> None:
    rule = rate_rule(name)
    for row in rule.table:
        assert rule.rate_bps(row.threshold_db, 1.0) == pytest.approx(0.9 * row.efficiency)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(FedloraError, match="'turbo'; choose one of shannon"):
        rate_rule("turbo")


@pytest.mark.parametrize("row", [NR_64QAM[5], NR_64QAM[11], NR_256QAM[13]], ids=repr)
@pytest.mark.slow
def test_one_block_in_ten_is_lost_at_the_threshold(row) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("sionna", reason="needs fedlora[sionna]")
    from sionna.phy import config
    from sionna.phy.channel import AWGN
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Demapper, Mapper

    q, bits, blocks = row.bits_per_symbol, 2000, 200
    coded = math.ceil(bits * 1024 / row.code_rate_1024 / q) * q
    encode = LDPC5GEncoder(bits, coded, num_bits_per_symbol=q)
    decode = LDPC5GDecoder(encode, hard_out=True, num_iter=20)
    map_bits, demap, noise = Mapper("qam", q), Demapper("app", "qam", q), AWGN()

    def block_error_rate(snr_db: float) -> float:
        with torch.random.fork_rng(), torch.no_grad():
            config.seed = 1
            variance = torch.tensor(10 ** (-snr_db / 10))
            sent = torch.randint(0, 2, (blocks, bits)).float()
            received = decode(demap(noise(map_bits(encode(sent)), variance), variance))
        return float((received != sent).any(-1).float().mean())

    assert block_error_rate(row.threshold_db + 0.5) < 0.1 < block_error_rate(row.threshold_db - 0.5)
