"""Write the recordings beside this file: drawn from a seed, in the forms of the published ones.

``python -m simulations.traces.make FOLDER`` writes them anew.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

_SECONDS = 60
_START_S = 1_700_000_000
_IRISH = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,RSRP,RSRQ,SNR,CQI,RSSI,"
    "DL_bitrate,UL_bitrate,State,NRxRSRP,NRxRSRQ"
)
_BEGIN = datetime(2023, 11, 14, 22, 13, 20)


def _snr_db(rng: random.Random) -> list[float]:
    """Return an SNR by second: slow shadowing with some noise, and one tunnel."""
    found = []
    for second in range(_SECONDS):
        shadow_db = 12 + 7 * math.sin(second / 7) - (25 if 40 <= second < 44 else 0)
        found.append(round(shadow_db + rng.gauss(0, 1.5)))
    return [float(value) for value in found]


def _kbps(rng: random.Random) -> list[int]:
    """Return a rate by second, in kbit/s, as 2 MHz would carry it."""
    return [round(2000 * math.log2(1 + 10 ** (snr / 10))) for snr in _snr_db(rng)]


def _own(rng: random.Random) -> str:
    rows = [f"{second},{snr:g},1e6" for second, snr in enumerate(_snr_db(rng))]
    return "\n".join(["time_s,snr_db,bandwidth_hz", *rows])


def _irish(rng: random.Random) -> str:
    rows = [_IRISH]
    second = 0
    for at, (snr, rate) in enumerate(zip(_snr_db(rng), _kbps(rng), strict=True)):
        stamp = (_BEGIN + timedelta(seconds=second)).strftime("%Y.%m.%d_%H.%M.%S")
        known = at % 11 != 7
        radio = f"-95,-11,{snr if known else '-'},{9 if known else '-'},-"
        idle = 50 <= at < 53
        traffic = f"{0 if idle else rate},{0 if idle else rate // 40},{'I' if idle else 'D'}"
        rows.append(f"{stamp},-8.47,51.9,0,X,12,5G,{radio},{traffic},-,-")
        # The logger's clock is a little off: two rows of one second, and none of the next.
        second += {20: 0, 21: 2}.get(at, 1)
    return "\n".join(rows)


def _bytes_log(rng: random.Random, unit_ms: int) -> str:
    rows, clock_ms = [], 549_692
    for rate in _kbps(rng):
        since_ms = rng.randrange(980, 1030)
        clock_ms += since_ms
        unix = (_START_S * 1000 + clock_ms) // unit_ms
        rows.append(f"{unix} {clock_ms} 59.85 10.78 {rate * since_ms // 8} {since_ms}")
    return "\n".join(rows)


def _mahimahi(rng: random.Random) -> str:
    times, credit = [], 0.0
    for second, rate in enumerate(_kbps(rng)[:12]):
        for ms in range(1000):
            credit += rate / 4 / (8 * 1504)
            while credit >= 1:
                credit -= 1
                times.append(second * 1000 + ms)
    return "\n".join(map(str, times))


def _oboe(rng: random.Random) -> str:
    rows, time_ms = [], 7
    for rate in _kbps(rng)[:30]:
        stop_ms = time_ms + rng.randrange(1500, 4000)
        rows += [f"{time_ms}.0 {rate + 0.5}", f"{stop_ms}.0 {rate + 0.5}"]
        time_ms = stop_ms + rng.randrange(30, 300)
    return "\n".join(rows)


def _pensieve(rng: random.Random) -> str:
    rows, time_s = [], 66.5
    for rate in _kbps(rng):
        rows.append(f"{time_s:.2f}\t{rate / 1000}")
        time_s += rng.randrange(3, 27) / 10
    return "\n".join(rows)


def _fcc(rng: random.Random) -> str:
    rows = ["unit_id,dtime,target,address,fetch_time,bytes_total,bytes_sec,objects,threads"]
    for unit in (101, 202):
        for hour, rate in enumerate(_kbps(rng)[:20]):
            stamp = _BEGIN + timedelta(hours=hour)
            size = rng.randrange(10**5, 10**6)
            speed = 125 * rate
            took_us = 1_000_000 * size // speed
            rows.append(f"{unit},{stamp},example.org,192.0.2.1,{took_us},{size},{speed},9,1")
    return "\n".join(rows)


MAKERS: Mapping[str, Callable[[random.Random], str]] = {
    "fedlora.csv": _own,
    "irish.csv": _irish,
    "hsdpa.log": lambda rng: _bytes_log(rng, 1000),
    "ghent.log": lambda rng: _bytes_log(rng, 1),
    "mahimahi.down": _mahimahi,
    "oboe.txt": _oboe,
    "pensieve.txt": _pensieve,
    "fcc.csv": _fcc,
}
"""By name of the file."""


def main(folder: Path) -> None:
    """Write every recording into a folder."""
    for name, make in MAKERS.items():
        (folder / name).write_text(make(random.Random(name)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
