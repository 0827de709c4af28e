"""``fedlora channel plot``: what a recording holds is drawn and told before it is replayed."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from fedlora.channel.traces import read_recording
from fedlora.commands.channel.plot import plot_recording, told_of
from fedlora.errors import FedloraError

IRISH = "package:simulations/traces/irish.csv"


def test_a_picture_is_written_and_what_was_read_is_told(tmp_path, capsys):
    out = tmp_path / "drive.png"
    plot_recording(IRISH, "", "rate", 0.0, out, overwrite=False)
    said = capsys.readouterr().out
    assert "irish" in said and "kbit/s" in said
    assert imread(out).shape[1] > 500
    with pytest.raises(FedloraError, match="--out"):
        plot_recording(IRISH, "", "rate", 0.0, out, overwrite=False)
    with pytest.raises(FedloraError, match=r"name a \.png file"):
        plot_recording(IRISH, "", "", 0.0, tmp_path / "drive.gif", overwrite=False)
    with pytest.raises(FedloraError, match="has no snr; plot its other values"):
        name = "package:simulations/traces/hsdpa.log"
        plot_recording(name, "", "snr", 0.0, tmp_path / "x.png", overwrite=False)


def test_rows_gaps_missing_marks_and_idle_times_are_counted(tmp_path):
    path = tmp_path / "drive.csv"
    rows = ["30,5G,6,800", "31,5G,-,900", "31,5G,7,0", "32,5G,7,700", "33,5G,7,700", "39,5G,8,600"]
    text = "".join(f"2019.12.14_10.16.{row},1,D\n" for row in rows)
    path.write_text("Timestamp,NetworkMode,SNR,DL_bitrate,UL_bitrate,State\n" + text)
    (link,) = read_recording(str(path)).links.values()
    by_snr = told_of(link, "snr_db")
    assert by_snr["rows"] == "6"
    assert by_snr["rows that share a second"] == "1"
    assert by_snr["rows marked as missing"] == "1, first in line 3"
    assert by_snr["gaps"] == "1, first in line 6, 6 s together"
    assert told_of(link, "rate_bps")["idle, or nothing through"] == "1, first in line 4"
