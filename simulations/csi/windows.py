"""What a forecast is made from and held against, as tensors: the same samples for all peers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.tasks import Record, task_class


@dataclass(frozen=True)
class Windows:
    """Samples of a forecast.

    Attributes
    ----------
    history
        Normalised, shape (samples, history, features).
    ahead
        What follows, in units of the data, shape (samples, horizon, features).
    mean, scale
        Statistics of each history, shape (samples, 1, features).
    site
        Whose each is, shape (samples,).
    speed_kmh
        How fast its user is, shape (samples,); NaN where the data do not tell.
    """

    history: torch.Tensor
    ahead: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    site: torch.Tensor
    speed_kmh: torch.Tensor

    def __len__(self) -> int:
        return len(self.history)

    def take(self, chosen: torch.Tensor) -> Windows:
        """Return some of them, by number or by a mask."""
        return Windows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def of(self, *sites: int) -> Windows:
        """Return those of some sites."""
        return self.take(torch.isin(self.site, torch.tensor(sites)))

    def known(self) -> torch.Tensor:
        """Return histories in units of the data."""
        return self.history * self.scale + self.mean

    def in_units(self, predicted: torch.Tensor) -> torch.Tensor:
        """Return normalised predictions (samples, horizon, features) in units of the data."""
        return predicted * self.scale + self.mean

    def loss(self, predicted: torch.Tensor) -> torch.Tensor:
        """Return squared error over energy of each sample of normalised predictions."""
        error = (self.in_units(predicted) - self.ahead).square().sum((1, 2))
        return error / self.ahead.square().sum((1, 2))


class Data:
    """The training and test samples of a scenario with ``task.kind = "forecast"``.

    Parameters
    ----------
    scenario
        Its ``task``, ``data`` and ``partition`` sections.
    samples
        Records of each site to train on, as many of each speed; 0: all.

    Attributes
    ----------
    sites
        Names of the sites, in the order of their numbers.
    train, test
        The samples.

    Raises
    ------
    FedloraError
        When the data cannot be used, or do not tell sites apart.
    """

    def __init__(self, scenario: Scenario, samples: int = 0) -> None:
        if scenario.task.kind != "forecast":
            raise FedloraError(
                f"task.kind is {scenario.task.kind}, and the study compares forecasts; name a "
                "scenario of kind forecast, such as csi-prediction"
            )
        if not scenario.data.test:
            raise FedloraError("data.test is empty, and the study tests on a file; name one")
        self._scenario, self._kind = scenario, task_class(scenario.task.kind)
        self._records = {"train": self._read("train"), "test": self._read("test")}
        if samples:
            self._records["train"] = self._few(self._records["train"], samples)
        held = {record[scenario.partition.column] for record in self._records["train"]}
        self.sites = sorted(held, key=lambda name: (len(name), name))
        strange = {r[scenario.partition.column] for r in self._records["test"]} - held
        if strange:
            raise FedloraError(
                f"data.test has records of site {min(strange)}, and data.train has none; name "
                "files of the same sites"
            )
        self.train = self._windows("train", None)
        self.test = self._windows("test", None)

    def test_at(self, snr_db: float) -> Windows:
        """Return the test samples with noise at another ratio."""
        return self._windows("test", (snr_db,))

    def records(self, which: Literal["train", "test"]) -> list[Record]:
        """Return the records as they were read."""
        return self._records[which]

    def _read(self, which: Literal["train", "test"]) -> list[Record]:
        scenario = self._scenario
        records = self._kind.records(scenario, which, labelled=False)
        column = scenario.partition.column
        if scenario.partition.kind != "column" or any(column not in one for one in records):
            raise FedloraError(
                f"partition.kind is {scenario.partition.kind} and partition.column {column!r}, and "
                "the study tells sites apart by a column of the data; set kind to column, and "
                "column to one that is there"
            )
        return records

    def _few(self, records: list[Record], samples: int) -> list[Record]:
        """Return the first records of each site and speed, so many of each site in all."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            group = record[self._scenario.partition.column], str(record.get("speed_kmh"))
            groups.setdefault(group, []).append(record)
        each = samples // len({speed for _, speed in groups})
        short = min(groups.items(), key=lambda item: len(item[1]))
        if samples % len({speed for _, speed in groups}) or len(short[1]) < each:
            (site, speed), held = short
            raise FedloraError(
                f"{samples} samples a site are asked for, and site {site} has {len(held)} at "
                f"{speed} km/h; ask for fewer, for as many of each speed, or draw more channels"
            )
        return [record for group in groups.values() for record in group[:each]]

    def _windows(
        self, which: Literal["train", "test"], snr_db: tuple[float, ...] | None
    ) -> Windows:
        scenario, records = self._scenario, self._records[which]
        forecast = scenario.task.forecast
        if snr_db is not None:
            forecast = replace(forecast, history_snr_db=snr_db)
        kind = self._kind(replace(scenario.task, forecast=forecast))
        samples = kind.samples(records, None, scenario.data)
        targets = [sample.target for sample in samples]
        numbers = {name: number for number, name in enumerate(self.sites)}
        sites = [numbers[record[scenario.partition.column]] for record in records]
        speeds = [float(record.get("speed_kmh", "nan")) for record in records]
        places = torch.tensor([sample.source for sample in samples])
        values = torch.stack([sample.values for sample in samples if sample.values is not None])
        return Windows(
            values.reshape(len(samples), forecast.history, forecast.features),
            torch.stack([target.steps for target in targets]),
            torch.stack([target.mean for target in targets])[:, None],
            torch.stack([target.scale for target in targets])[:, None],
            torch.tensor(sites)[places],
            torch.tensor(speeds)[places],
        )
