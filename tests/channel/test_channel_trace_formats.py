"""Recordings as they are published: expected rates are written down by hand, or by definition."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from fedlora.channel import build_channel
from fedlora.channel.models.trace import TraceChannel
from fedlora.channel.traces import TRACE_FORMATS, read_recording
from fedlora.config import ChannelConfig, ReportConfig
from fedlora.errors import FedloraError
from simulations.traces.make import MAKERS

SAMPLES = Path(__file__).parents[2] / "simulations" / "traces"
OPTIONS = {
    "irish.csv": {"missing": "hold"},
    "fcc.csv": {"step_s": 5},
}
FORMATS = {name: name.partition(".")[0] for name in MAKERS}

IRISH = "Timestamp,NetworkMode,SNR,DL_bitrate,UL_bitrate,State\n"


def replay(tmp_path: Path, text: str, options=None, **config) -> TraceChannel:
    path = tmp_path / "trace"
    path.write_text(text)
    own = {"round_s": 1.0} | config
    return TraceChannel(ChannelConfig(model="trace", **own), 0, path=str(path), **(options or {}))


def rates(model: TraceChannel, blocks: int, client: int = 0) -> list[float]:
    return [model.sample(client, block).down_rate_bps for block in range(blocks)]


def test_every_format_has_a_sample_that_is_known_by_its_content(tmp_path):
    hint = get_type_hints(ChannelConfig)["trace_format"]
    assert set(get_args(hint)) == {"", *TRACE_FORMATS}
    assert set(FORMATS.values()) == set(TRACE_FORMATS)
    for name, format in FORMATS.items():
        step_s = OPTIONS.get(name, {}).get("step_s", 0.0)
        found = read_recording(str(SAMPLES / name), step_s=step_s)
        assert found.format == format
        named = read_recording(f"package:simulations/traces/{name}", format, step_s=step_s)
        assert named.links.keys() == found.links.keys()


def test_committed_samples_are_what_their_maker_writes():
    for name, make in MAKERS.items():
        assert (SAMPLES / name).read_text() == make(random.Random(name)) + "\n"


@pytest.mark.parametrize("name", MAKERS)
def test_a_sample_of_each_format_is_replayed_as_a_channel(name):
    options = {"path": str(SAMPLES / name), **OPTIONS.get(name, {})}
    config = ChannelConfig(model="trace", options=options, round_s=2.0, coherence_s=0.5)
    channel = build_channel(config, 0)
    states = [channel.truth(0, round, offset) for round in range(40) for offset in (0.0, 1.5)]
    assert all(state.down_rate_bps > 0 for state in states)
    assert len({state.down_rate_bps for state in states}) > 8
    by_rate = name not in ("irish.csv", "fedlora.csv")
    assert {state.down_snr_db is None for state in states} == {by_rate}
    assert {state.derived for state in states} == {by_rate}


def mahimahi(times: list[int], until_ms: int) -> list[int]:
    """Return packets by millisecond as ``link_queue.cc`` goes through its schedule."""
    found, base, at = [0] * until_ms, 0, 0
    while base + times[at] < until_ms:
        found[base + times[at]] += 1
        at += 1
        if at == len(times):
            at, base = 0, base + times[-1]
    return found


@pytest.mark.parametrize("times", [[*range(10)], [3], [0, 0, 5, 5, 5, 7], [4, 4, 20]])
def test_mahimahi_gives_a_packet_of_1504_bytes_a_line_and_begins_anew_at_the_last(tmp_path, times):
    text = "".join(f"{time}\n" for time in times)
    expected = mahimahi(times, 400)
    for block_ms in (1, 3, 20):
        config = {"round_s": 1.2, "coherence_s": block_ms / 1000}
        model = replay(tmp_path, text, **config)
        for block in range(400 // block_ms):
            packets = sum(expected[block * block_ms : (block + 1) * block_ms])
            bps = max(packets * 1504 * 8 / (block_ms / 1000), 1e-30)
            assert model.sample(0, block).down_rate_bps == pytest.approx(bps), (block_ms, block)


def test_ten_lines_of_mahimahi_are_13_megabit_a_second_as_its_period_is_nine_milliseconds(tmp_path):
    model = replay(tmp_path, "".join(f"{time}\n" for time in range(10)), round_s=9.0)
    assert rates(model, 3)[2] == 10_000 * 1504 * 8 / 9


def test_a_rate_is_the_mean_over_its_block_so_that_no_bit_is_lost(tmp_path):
    model = replay(tmp_path, "time_s,rate_bps\n0,100\n1,300\n3,900\n", round_s=2.5)
    # 0-1 at 100, 1-3 at 300, 3-4.5 at 900 (rows are usually 1.5 s apart), then anew.
    assert rates(model, 3) == pytest.approx([
        (100 + 1.5 * 300) / 2.5,
        (0.5 * 300 + 1.5 * 900 + 0.5 * 100) / 2.5,
        (0.5 * 100 + 2 * 300) / 2.5,
    ])  # fmt: skip


def test_hsdpa_and_ghent_count_bytes_of_the_time_before_a_line(tmp_path):
    published = "1289406399 549692 59.851754 10.781778 248069 1008\n"
    further = "1289406400 550692 59.851 10.781 125000 1000\n"
    model = replay(tmp_path, published + further, round_s=2.008)
    assert rates(model, 2) == pytest.approx([(248069 + 125000) * 8 / 2.008] * 2)
    assert read_recording(model_path(tmp_path)).format == "hsdpa"
    ghent = "1453120790686 3218 51.03 3.73 0 1000\n1453120791686 4218 51.03 3.73 125000 1000\n"
    held = replay(tmp_path, ghent, {"idle": "hold"})
    assert rates(held, 2) == pytest.approx([1e6, 1e6])
    cut = replay(tmp_path, ghent, {"idle": "outage"}, round_s=2.0)
    assert rates(cut, 1) == pytest.approx([5e5])


def model_path(tmp_path: Path) -> str:
    return str(tmp_path / "trace")


def test_pensieves_rate_is_of_the_time_up_to_its_row_and_anew_after_the_last(tmp_path):
    text = "66.5\t9.0\n67.0\t1.0\n69.0\t2.0\n"
    model = replay(tmp_path, text, round_s=0.5)
    assert rates(model, 7) == pytest.approx([1e6, 2e6, 2e6, 2e6, 2e6, 1e6, 2e6])


def test_oboes_chunks_are_in_pairs_and_joined_by_a_straight_line(tmp_path):
    text = "7.0 4000\n1007.0 4000\n1207.0 2000\n2207.0 2000\n"
    model = replay(tmp_path, text, round_s=2.2)
    assert rates(model, 2) == pytest.approx([(4e6 + 0.2 * 3e6 + 2e6) / 2.2] * 2)


def test_fccs_tests_are_bytes_a_second_and_each_unit_a_client(tmp_path):
    rows = "{0},2015-01-01 00:00:00,a,h,1,2,{1}\n{0},2015-01-01 01:00:00,a,h,1,2,{2}\n"
    text = rows.format(7, 1000, 2000) + rows.format(3, 500, 125)
    model = replay(tmp_path, text, {"step_s": 5}, round_s=5.0)
    assert rates(model, 3, client=0) == pytest.approx([8000, 16000, 8000])
    assert rates(model, 2, client=1) == pytest.approx([4000, 1000])
    with pytest.raises(FedloraError, match="no rows for client 2, only for 0, 1"):
        model.sample(2, 0)
    with pytest.raises(FedloraError, match=r"no duration; set channel.options.step_s"):
        replay(tmp_path, text)


def drive(*rows: str) -> str:
    return IRISH + "".join(f"2019.12.14_10.16.{row}\n" for row in rows)


def test_irish_rows_of_one_second_share_it_and_marks_are_held_where_that_is_asked(tmp_path):
    text = drive("30,5G,6.0,80,1,D", "31,5G,-,90,1,D", "31,5G,8.0,10,1,D", "33,LTE,2,40,1,D")
    model = replay(tmp_path, text, {"missing": "hold"}, round_s=0.5)
    found = [model.sample(0, block).down_snr_db for block in range(9)]
    assert found == [6, 6, 6, 8, 8, 8, 2, 2, 6]
    by_rate = replay(tmp_path, text, {"values": "rate"}, round_s=1.0)
    assert rates(by_rate, 4) == pytest.approx([80e3, 50e3, 10e3, 40e3])
    assert by_rate.sample(0, 0).up_rate_bps == pytest.approx(80e3)  # not the acknowledgements'
    with pytest.raises(FedloraError, match="line 3 marks snr_db as missing; set channel"):
        replay(tmp_path, text)


def test_an_idle_second_is_no_outage_unless_somebody_says_so(tmp_path):
    text = drive("30,5G,6,80,1,D", "31,5G,7,0,1,D", "32,5G,7,30,1,I", "33,5G,7,40,1,D")
    with pytest.raises(FedloraError, match=r"line 3 has a rate of 0 bit/s .*\(and 1 more\)"):
        replay(tmp_path, text, {"values": "rate"})
    hold = replay(tmp_path, text, {"values": "rate", "idle": "hold"})
    assert rates(hold, 4) == pytest.approx([80e3, 80e3, 80e3, 40e3])
    config = {"round_s": 1.0, "coherence_s": 0.5}
    cut = replay(tmp_path, text, {"values": "rate", "idle": "outage"}, **config)
    assert rates(cut, 8)[1:7] == pytest.approx([80e3, 1e-30, 1e-30, 1e-30, 1e-30, 40e3])
    with pytest.raises(FedloraError, match="carries nothing for 2 s from 1 s on"):
        replay(tmp_path, text, {"values": "rate", "idle": "outage"})


def test_an_uplink_has_a_file_of_its_own_or_a_share_of_the_downlink(tmp_path):
    (tmp_path / "up").write_text("1\n2\n4\n")
    options = {"up_path": str(tmp_path / "up")}
    link = replay(tmp_path, "1\n1\n2\n", options, round_s=4.0).sample(0, 1)
    assert (link.up_rate_bps, link.down_rate_bps) == (3 * 1504 * 8 / 0.004, 3 * 1504 * 8 / 0.002)
    shared = replay(tmp_path, "1\n2\n", {"up_rate_factor": 0.25}, round_s=2.0).sample(0, 1)
    assert shared.up_rate_bps == shared.down_rate_bps / 4
    with pytest.raises(FedloraError, match=r"up_rate_factor is 0.5, and .* own rates"):
        replay(tmp_path, "1\n2\n", options | {"up_rate_factor": 0.5}, round_s=4.0)


def test_several_files_are_dealt_to_the_clients_in_turn(tmp_path):
    for name, snr in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(f"time_s,snr_db\n0,{snr}\n")
    files = [str(tmp_path / name) for name in "ab"]
    model = TraceChannel(ChannelConfig(model="trace"), 0, path=files)
    assert [model.sample(client, 0).down_snr_db for client in range(4)] == [1, 2, 1, 2]
    with pytest.raises(FedloraError, match="up_path names 1 files and path 2"):
        TraceChannel(ChannelConfig(model="trace"), 0, path=files, up_path=files[0])


def test_an_equivalent_snr_gives_the_rate_at_the_bandwidth(tmp_path):
    model = replay(tmp_path, "time_s,rate_bps\n0,2e6\n", {"equivalent_snr": True})
    assert model.sample(0, 0).down_snr_db == pytest.approx(4.771, abs=1e-3)  # 3 at 1 MHz


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1\n3\n2\n", {}, "line 3 has 2 after 3; mahimahi's times do not decrease"),
        ("1\n\n2\n", {}, "line 2 has ''; mahimahi writes"),
        ("1\n2 3\n", {}, "line 2 has '2 3'; mahimahi writes"),
        ("0\n0\n", {}, "ends at 0 ms"),
        ("10000\n", {}, "carries nothing for 10 s .* set channel.coherence_s"),
        ("1 2 3 4 5 6\n2 1001 3 4 -5 1000\n", {}, "line 2 has -5 bytes in 1000 ms"),
        ("1 2 3 4 5 0\n", {}, "line 1 has 5 bytes in 0 ms"),
        ("1 2 3 4 5 6\n2 1 3 4 5 6\n", {}, "line 2 has 1 ms after 2; cut"),
        ("1 0 3 4 5 6\n2 1000 3 4 5 5000\n", {}, "bytes of 5000 ms, but its clock .* 1000 ms"),
        ("1 0 3 4 5 9\n2 9000 3 4 5 1000\n", {}, "a gap of 8 s after line 2"),
        (
            "9e9 0 3 4 5 999\n9000000001 999 3 4 5 999\n",
            {"f": "ghent"},
            "1 ms after the line before",
        ),
        (
            "9e11 0 3 4 5 9\n900000000999 999 3 4 5 999\n",
            {"f": "hsdpa"},
            "999000 ms after the line",
        ),
        ("1e9 0 3 4 5 9\n2e9 999 3 4 5 999\n", {}, "unix time of 2000000000.*trace_format"),
        ("1 2 3 4 5\n", {}, "begins with '1 2 3 4 5', which is none of fedlora, irish"),
        ("0 1\n50 1\n55 2\n155 2\n160 3\n260 3\n", {}, "may be oboe or pensieve; say which"),
        ("0 1\n1 x\n", {"f": "pensieve"}, "line 2 has 'x' for Mbit/s"),
        ("0 1\n1 -2\n", {"f": "pensieve"}, "line 2 has -2 Mbit/s; write a rate"),
        ("0 1\n1 2\n1 3\n", {"f": "pensieve"}, "line 3 has 1 s after 1; sort"),
        ("0 1\n", {"f": "pensieve"}, "has no span of time"),
        ("0 1\n500 1\n600 2\n", {"f": "oboe"}, "line 3 has 2 kbit/s, and nothing is in the next"),
        ("0 1\n500 2\n", {"f": "oboe"}, "line 1 has 1 kbit/s, and 2 kbit/s is in the next"),
        ("0 1\n500 1\n400 2\n600 2\n", {}, "line 3 has 400 ms after 500"),
        ("0 1\n500 1\n9000 2\n9500 2\n", {}, "a gap of 8.5 s after line 3"),
        ("1,2015-01-01 0:00:00,a,h,1,2,nan\n", {"step_s": 5}, "line 1 has 'nan' for bytes_sec"),
        ("1,2015-01-01 00:00:00,a,h,1,2,3\n" * 2, {"step_s": 5}, "line 2 has a test of unit 1"),
        (IRISH, {}, "a header but no rows"),
        (drive("30,5G,6,1,1,D", "29,5G,6,1,1,D"), {}, "line 3 lies 1 s before the line above"),
        (drive(*(f"{s},5G,6,1,1,D" for s in (10, 11, 12, 23))), {}, "a gap of 11 s after line 4"),
        (IRISH + "2019-12-14 10:16:30,5G,6,1,1,D\n", {}, "line 2 has '2019-12-14 10:16:30'"),
        (drive("30,5G,-,1,1,D"), {"missing": "hold"}, "has no value of snr_db in any row"),
        (drive("30,5G,1e9,1,1,D"), {}, "SNR in line 2 .* from -200 to 200"),
        (drive("30,5G,1_0,1,1,D"), {}, "line 2 has '1_0' for SNR"),
        ("time_s,rate_bps\n0,0\n", {"idle": "outage"}, "carries nothing at all"),
        ("time_s,rate_bps\n0,1\n", {"values": "snr"}, "has no SNR; replay its rates"),
        ("time_s,snr_db\n0,1\n", {"values": "rate"}, "has no rates; set channel.options.values"),
        ("1\n", {"values": "both"}, "values is 'both'; choose one of"),
        ("1\n", {"idle": "drop"}, "idle is 'drop'; choose one of refuse, hold, outage"),
    ],
)
def test_what_a_file_leaves_in_doubt_is_refused_with_line_and_value(
    tmp_path, text, options, message
):
    options = dict(options)
    format = options.pop("f", "")
    with pytest.raises(FedloraError, match=message) as caught:
        replay(tmp_path, text, options, trace_format=format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"up_snr_offset_db": 3.0}, "up_snr_offset_db is 3, and trace"),
        ({"report": ReportConfig(error_db=2.0)}, "report.error_db is 2, and trace"),
    ],
)
def test_what_rates_cannot_have_is_refused(tmp_path, config, message):
    with pytest.raises(FedloraError, match=message):
        replay(tmp_path, "1\n2\n", **config)


def test_a_format_is_named_for_a_trace_alone():
    with pytest.raises(FedloraError, match=r"trace_format is 'oboe', and channel.model 'awgn'"):
        ChannelConfig(trace_format="oboe")


def test_a_folder_that_zip_files_of_a_mac_hold_is_no_recording(tmp_path):
    (tmp_path / "._drive.csv").write_bytes(b"\x00\x05\x16\x07\x00\x02\xff\xfe")
    with pytest.raises(FedloraError, match="it is not UTF-8 text"):
        read_recording(str(tmp_path / "._drive.csv"))
    with pytest.raises(FedloraError, match="cannot read trace /dev/null: it is no file"):
        read_recording("/dev/null")
