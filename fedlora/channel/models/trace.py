"""Replay of a recorded channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.channel.models.base import ChannelModel, Link
from fedlora.channel.rate import Shannon
from fedlora.channel.state import RATE_MAX_BPS, RATE_MIN_BPS
from fedlora.channel.traces import Packets, Recording, Track, read_recording, replay as series
from fedlora.channel.traces.track import Link as Recorded
from fedlora.checks import choice, number, truth
from fedlora.config import LONGEST_S, MOST_WALKED_BLOCKS, ChannelConfig
from fedlora.errors import FedloraError

_KINDS = ("snr", "rate")
_OF_SNR = {"down": ("down_snr_db", "snr_db"), "up": ("up_snr_db", "snr_db")}
_OF_RATE = {"down": ("down_rate_bps", "rate_bps"), "up": ("up_rate_bps", "rate_bps")}
_OF_UPLINK = ("upload_bps", "up_rate_bps", "rate_bps")


@dataclass(frozen=True)
class _SnrLink:
    """Values of a client's link over time, in dB and Hz."""

    up_db: series.Held
    down_db: series.Held
    bandwidth_hz: series.Held | None


@dataclass(frozen=True)
class _RateLink:
    """Rates of a client's link over time, and the bandwidth in Hz."""

    up: series.Rate
    down: series.Rate
    bandwidth_hz: series.Held | None


class TraceChannel(ChannelModel):
    """A recording, repeated when it ends; ``docs/channels.md`` has the formats.

    An SNR is that in force when a fading block begins. A rate is the mean over the block, so that
    a block carries the bits that were recorded; a link whose rate was recorded has no SNR.

    Parameters
    ----------
    config, seed
        See ``ChannelModel``; ``config.trace_format`` names the files' format.
    path
        The file, or several, dealt to the clients in turn.
    up_path
        As many of the uplink alone; without it the uplink is what ``path`` has for it, or as the
        downlink.
    values
        ``snr`` or ``rate``; by default the SNR where the file has one.
    missing, idle
        See ``fedlora.channel.traces.replay.known``.
    up_rate_factor
        The uplink's rate over the downlink's, where only the latter was recorded.
    step_s
        How long a line stands for, in seconds, where the format does not say (``fcc``).
    equivalent_snr
        Whether to state the SNR at which the bandwidth would have the recorded rate, as derived.
    """

    def __init__(
        self,
        config: ChannelConfig,
        seed: int,
        *,
        path: str | Sequence[str] = "",
        up_path: str | Sequence[str] = "",
        values: str = "",
        missing: str = "refuse",
        idle: str = "refuse",
        up_rate_factor: float = 1.0,
        step_s: float = 0.0,
        equivalent_snr: bool = False,
    ) -> None:
        super().__init__(config, seed)
        option = "channel.options."
        files = _files(option + "path", path)
        if not files:
            raise FedloraError(f"{option}path is empty; name the file that trace replays")
        up_files = _files(option + "up_path", up_path)
        if up_files and len(up_files) != len(files):
            raise FedloraError(
                f"{option}up_path names {len(up_files)} files and path {len(files)}; name one "
                "uplink for each"
            )
        choice(option + "values", values, ("", *_KINDS))
        self._treatment = {
            "missing": choice(option + "missing", missing, ("refuse", "hold")),
            "idle": choice(option + "idle", idle, ("refuse", "hold", "outage")),
        }
        self._factor = number(option + "up_rate_factor", up_rate_factor, 1e-9, 1e9)
        self._equivalent_snr = truth(option + "equivalent_snr", equivalent_snr)
        step_s = number(option + "step_s", step_s, 0.0, LONGEST_S)

        def read(name: str, key: str) -> Recording:
            return read_recording(name, config.trace_format, step_s=step_s, key=option + key)

        down = [read(name, "path") for name in files]
        up = [read(name, "up_path") for name in up_files]
        if len(down) > 1 and any(set(one.links) != {None} for one in down + up):
            raise FedloraError(
                f"{option}path names {len(down)} files, of which one has several clients; name "
                "that one alone"
            )
        self._links = [
            self._of_file(one, up[index] if up else None, values) for index, one in enumerate(down)
        ]
        self._path = down[0].path

    def sample(self, client: int, block: int) -> Link:
        """Return the link of a client in a fading block."""
        links = self._links[client % len(self._links)]
        link = links.get(client, links.get(None))
        if link is None:
            have = ", ".join(str(name) for name in sorted(k for k in links if k is not None))
            raise FedloraError(
                f"trace {self._path} has no rows for client {client}, only for {have}; "
                "add them, or leave out the column client so that all clients share the trace"
            )
        start_s = self.time_s(block)
        bandwidth_hz = self.bandwidth_hz(client, block)
        if link.bandwidth_hz is not None:
            bandwidth_hz = link.bandwidth_hz.at(start_s)
        if isinstance(link, _SnrLink):
            return Link(link.up_db.at(start_s), link.down_db.at(start_s), bandwidth_hz)
        stop_s = self.time_s(block + 1)
        up_bps, down_bps = (
            min(max(rate.bits(start_s, stop_s) / (stop_s - start_s), RATE_MIN_BPS), RATE_MAX_BPS)
            for rate in (link.up, link.down)
        )
        if link.up is link.down:
            up_bps = min(max(up_bps * self._factor, RATE_MIN_BPS), RATE_MAX_BPS)
        up_db = down_db = None
        if self._equivalent_snr:
            rule = Shannon(self.config.gap_db)
            up_db = rule.snr_db(up_bps, bandwidth_hz)
            down_db = rule.snr_db(down_bps, bandwidth_hz)
        return Link(up_db, down_db, bandwidth_hz, up_bps, down_bps)

    def _of_file(
        self, down: Recording, up: Recording | None, values: str
    ) -> dict[int | None, _SnrLink | _RateLink]:
        links: dict[int | None, _SnrLink | _RateLink] = {}
        for client, link in down.links.items():
            uplink = link if up is None else up.links.get(client, up.links.get(None))
            if uplink is None:
                raise FedloraError(
                    f"trace {up.path if up else ''} has no rows for client {client}, which "
                    f"{down.path} has; add them"
                )
            path = down.path if up is None else up.path
            kind = values or ("snr" if series.choose(link, _OF_SNR["down"]) else "rate")
            make = self._snr_link if kind == "snr" else self._rate_link
            links[client] = make(down.path, link, path, uplink)
        return links

    def _snr_link(self, path: Path, link: Recorded, up_path: Path, uplink: Recorded) -> _SnrLink:
        own = uplink is not link or series.choose(link, ("up_snr_db",))
        offset_db = 0.0 if own else self.config.up_snr_offset_db
        down_db = self._held(path, link, _OF_SNR["down"], "SNR")
        up_db = self._held(up_path, uplink, _OF_SNR["up"], "SNR", offset_db)
        return _SnrLink(up_db, down_db, self._bandwidth(path, link))

    def _rate_link(self, path: Path, link: Recorded, up_path: Path, uplink: Recorded) -> _RateLink:
        for key, value in (
            ("up_snr_offset_db", self.config.up_snr_offset_db),
            ("report.error_db", self.config.report.error_db),
        ):
            if value:
                raise FedloraError(
                    f"channel.{key} is {value:g}, and trace {path} is replayed by its rates, which "
                    "have no SNR; set 0"
                )
        down = self._rate(path, link, _OF_RATE["down"])
        if uplink is not link:
            up = self._rate(up_path, uplink, _OF_UPLINK)
        elif series.choose(link, ("up_rate_bps",)):
            up = self._rate(path, link, _OF_RATE["up"])
        else:
            up = down
        if up is not down and self._factor != 1.0:
            raise FedloraError(
                f"channel.options.up_rate_factor is {self._factor:g}, and {up_path} has the "
                "uplink's own rates; leave it out"
            )
        return _RateLink(up, down, self._bandwidth(path, link))

    def _held(
        self, path: Path, link: Recorded, names: tuple[str, ...], what: str, offset: float = 0.0
    ) -> series.Held:
        name = series.choose(link, names)
        if not name or isinstance(link, Packets):
            raise FedloraError(
                f"trace {path} has no {what}; replay its rates, with channel.options.values as "
                "rate, and no SNR of an uplink"
            )
        held = series.held_values(link, name, path, self._treatment)
        return series.Held(held.start_s, held.values + offset, held.period_s)

    def _rate(self, path: Path, link: Recorded, names: tuple[str, ...]) -> series.Rate:
        name = series.choose(link, names)
        if not name:
            raise FedloraError(
                f"trace {path} has no rates; set channel.options.values to snr, or name a file "
                "that has them"
            )
        rate = series.rate_of(link, name, path, self._treatment)
        at_s, longest_s = rate.outage_s()
        if math.isinf(longest_s):
            raise FedloraError(f"trace {path} carries nothing at all; replay another file")
        within_round = self.config.coherence_s > 0
        most_s = self.config.block_s * (MOST_WALKED_BLOCKS if within_round else 1)
        if longest_s >= most_s:
            raise FedloraError(
                f"trace {path} carries nothing for {longest_s:g} s from {at_s:g} s on, and what is "
                f"sent then would wait for ever in fading blocks of {self.config.block_s:g} s; set "
                f"channel.coherence_s to a part of a round, at least {longest_s / 1000:.2g} s"
            )
        return rate

    def _bandwidth(self, path: Path, link: Recorded) -> series.Held | None:
        if not isinstance(link, Track) or "bandwidth_hz" not in link.values:
            return None
        return series.held_values(link, "bandwidth_hz", path, self._treatment)


def _files(key: str, path: object) -> list[str]:
    """Return the files that an option names."""
    files = [path] if isinstance(path, str) else path
    if not isinstance(files, (list, tuple)) or any(not isinstance(name, str) for name in files):
        raise FedloraError(f"{key} is {path!r:.80}; name a file, or a list of them")
    for name in files:
        if "\0" in name:
            raise FedloraError(f"{key} is {name!r}; name the file to replay")
    named = [name for name in files if name]
    if len(named) != len(files) and files != [""]:
        raise FedloraError(f"{key} is {path!r:.80}, of which one is empty; name a file each")
    return named
