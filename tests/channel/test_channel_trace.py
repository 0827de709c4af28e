"""Replay of recorded channels."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest

from fedlora.channel.models.trace import TraceChannel
from fedlora.config import ChannelConfig
from fedlora.errors import FedloraError


def replay(tmp_path: Path, text: str, **config: object) -> TraceChannel:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return TraceChannel(ChannelConfig(**config), 0, path=str(path))


def test_values_are_held_and_the_trace_repeats(tmp_path: Path) -> None:
    model = replay(
        tmp_path, "time_s,snr_db\n100,1\n102,2\n104,3\n", round_s=1.0, up_snr_offset_db=-2.0
    )
    links = [model.sample(7, block) for block in range(9)]
    assert [link.down_snr_db for link in links] == [1, 1, 2, 2, 3, 3, 1, 1, 2]
    assert [link.up_snr_db for link in links] == [-1, -1, 0, 0, 1, 1, -1, -1, 0]
    assert {link.bandwidth_hz for link in links} == {1e6}


def test_blocks_of_a_fractional_length_meet_their_rows(tmp_path: Path) -> None:
    rows = "".join(f"{index * 0.1:.1f},{index}\n" for index in range(50))
    model = replay(tmp_path, "time_s,snr_db\n" + rows, round_s=1.0, coherence_s=0.1)
    assert [model.sample(0, b).down_snr_db for b in range(120)] == [b % 50 for b in range(120)]


@pytest.mark.parametrize("first_s", ["0", "1700000000"])
@pytest.mark.parametrize("first_block", [0, 10**7])
@pytest.mark.parametrize("step", ["0.1", "0.2", "0.01", "0.3", "0.7"])
@pytest.mark.parametrize("rows", [2, 3, 7, 10])
def test_the_series_begins_again_with_its_first_row_however_long_it_repeats(
    tmp_path: Path, rows: int, step: str, first_block: int, first_s: str
) -> None:
    times = [Decimal(first_s) + index * Decimal(step) for index in range(rows)]
    text = "time_s,snr_db\n" + "".join(f"{time},{i}\n" for i, time in enumerate(times))
    step_s = float(step)
    model = replay(tmp_path, text, round_s=10 * step_s, coherence_s=step_s)
    blocks = range(first_block, first_block + 500)
    assert [model.sample(0, b).down_snr_db for b in blocks] == [b % rows for b in blocks]


def test_directions_bandwidth_and_clients_are_read(tmp_path: Path) -> None:
    model = replay(
        tmp_path,
        "\ufefftime_s, client, up_snr_db, down_snr_db, bandwidth_hz\n"
        "0,0,1,2,1e6\n0,1,3,4,2e6\n1,0,5,6,3e6\n1,1,7,8,4e6\n",
        round_s=1.0,
    )
    first, second = model.sample(0, 1), model.sample(1, 0)
    assert (first.up_snr_db, first.down_snr_db, first.bandwidth_hz) == (5, 6, 3e6)
    assert (second.up_snr_db, second.down_snr_db, second.bandwidth_hz) == (3, 4, 2e6)
    with pytest.raises(FedloraError, match="no rows for client 2, only for 0, 1; add them"):
        model.sample(2, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs time_s"),
        ("time_s,snr_db\n", "a header but no rows"),
        ("time_s,up_snr_db\n0,1\n", "snr_db or both up_snr_db and down_snr_db"),
        ("time_s,snr_db,rsrp\n0,1,2\n", "unknown column 'rsrp'; known: time_s, client"),
        ("time_s,snr_db\n0,1\n1,nan\n", "line 3 has 'nan' for snr_db"),
        ("time_s,snr_db\n0,1\n1,\n", "line 3 has '' for snr_db"),
        ("time_s,snr_db\n0,1\n1\n", "line 3 has None for snr_db"),
        ("time_s,snr_db\n0,1\n1,2,3\n", "line 3 has more cells than the header"),
        ("time_s,snr_db\n0,good\n", "line 2 has 'good' for snr_db"),
        ("time_s,snr_db\n0,1\n2,1\n1,1\n", "line 4 has time_s 1 after 2; sort the rows"),
        ("time_s,snr_db\n0,1\n0,2\n", "line 3 has time_s 0 after 0"),
        ("time_s,snr_db\n0,1\n1,1\n2,1\n9,1\n", "a gap of 7 s after line 4 .* usually 1 s apart"),
        ("time_s,snr_db,snr_db\n0,5,50\n", "has the column 'snr_db' twice; remove one"),
        ("time_s,snr_db\n0,1\n1,1e6\n", r"snr_db in line 3 of .* from -200 to 200"),
        ("time_s,up_snr_db,down_snr_db\n0,1,-201\n", "down_snr_db in line 2 of .* from -200"),
        ("time_s,client,snr_db\n0,-1,1\n", "client -1; write an index"),
        ("time_s,snr_db,bandwidth_hz\n0,1,0\n", "is 0.0; set a finite number from 1"),
        ("time_s,snr_db\n-1e308,1\n1e308,1\n", "time_s in line 2 of .* from -1e[+]12 to 1e[+]12"),
        (f"time_s,snr_db\n0,1\n1,{'7' * 2000}\n", "line 3 cannot be read .field larger"),
        (f"time_s,snr_db\n0,1\n1,{'x' * 900}\n", "line 3 has 'x+ for snr_db; write"),
        (f"time_s,{'s' * 900}\n0,1\n", "the unknown column 's+; known"),
    ],
)
def test_a_bad_trace_is_explained_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    usual = csv.field_size_limit(1000)
    try:
        with pytest.raises(FedloraError, match=message) as caught:
            replay(tmp_path, text)
    finally:
        csv.field_size_limit(usual)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedloraError, match=r"cannot read trace .*absent\.csv: No such file"):
        TraceChannel(ChannelConfig(), 0, path=str(tmp_path / "absent.csv"))
    with pytest.raises(FedloraError, match="path is empty; name the file"):
        TraceChannel(ChannelConfig(), 0)
    with pytest.raises(FedloraError, match=r"path is 'a\\x00b'; name the file"):
        TraceChannel(ChannelConfig(), 0, path="a\0b")
    with pytest.raises(FedloraError, match=r"cannot read trace .*: Is a directory"):
        TraceChannel(ChannelConfig(), 0, path=str(tmp_path))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedloraError, match="it is not UTF-8 text"):
        TraceChannel(ChannelConfig(), 0, path=str(tmp_path / "binary.csv"))
