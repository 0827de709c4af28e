"""Records of numbers over time: from columns of rows, or from arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedlora.config import AXES, Scenario
from fedlora.errors import FedloraError, shown
from fedlora.split import resolve_path
from fedlora.tasks.arrays import FORMATS, read_arrays
from fedlora.tasks.columns import Record
from fedlora.tasks.data import load_records

Values: TypeAlias = NDArray[np.float32]
VALUES: Final = "values"
"""Column of a record with its numbers, shape (ports, time, features)."""

_DEFAULT: Final = {1: ("time",), 2: ("time", "feature"), 3: ("record", "time", "feature")}
_MOST: Final = float(np.finfo(np.float32).max)


def load_series(scenario: Scenario, which: Literal["train", "test"]) -> list[Record]:
    """Read the records of a forecast.

    - ``.csv``, ``.tsv``: a row a time step, in order. ``data.values`` names the columns (empty: all
      that hold a number in the first row), ``data.group`` the column that tells series apart.
    - arrays (see ``read_arrays``): one whose axes are ``data.axes``. Of several ``data.values``
      names the one; those with an entry a record are columns.
      Complex numbers become real parts followed by imaginary parts.

    A series that is no record yet is cut into records of ``data.segment`` steps, which do not
    overlap, so that held-out steps are none that was trained on.

    Parameters
    ----------
    scenario
        Its ``data`` and ``task.forecast`` sections are used.
    which
        ``train`` or ``test``.

    Returns
    -------
    list of dict
        With fp32 numbers of shape (ports, time, features) in ``values``.

    Raises
    ------
    FedloraError
        When the file cannot be read, or what is in it is not what the scenario says.
    """
    data, key = scenario.data, f"data.{which}"
    path = getattr(data, which)
    kind = Path(path).suffix.lower()
    if kind in FORMATS and not path.startswith("hub:"):
        made = _from_array(scenario, resolve_path(path, "data", key), path)
    else:
        made = _from_rows(scenario, which, path)
    features = scenario.task.forecast.features
    found = made[0][VALUES].shape[-1]
    if found != features:
        raise FedloraError(
            f"{path} has {found} numbers a time step, and task.forecast.features is {features}; "
            f"set it to {found}, or name the columns or the axes in data.values and data.axes"
        )
    return made


def _from_rows(scenario: Scenario, which: Literal["train", "test"], path: str) -> list[Record]:
    data = scenario.data
    rows = load_records(data, which, texts=False)
    names = data.values or tuple(n for n, v in rows[0].items() if _number(v) is not None)
    names = tuple(name for name in names if name != data.group)
    if not names:
        raise FedloraError(
            f"{path} has no number in its first row; name the columns of the series in data.values"
        )
    series: dict[str, list[list[float]]] = {}
    for place, row in enumerate(rows, 1):
        numbers = []
        for name in names:
            number = _number(row.get(name, ""))
            if number is None:
                raise FedloraError(
                    f"record {place} of {path} has {shown(row.get(name, ''))} in {name!r}, which "
                    "is no finite number; mend it, or name other columns in data.values"
                )
            numbers.append(number)
        if data.group and data.group not in row:
            raise FedloraError(
                f"record {place} of {path} has no {data.group!r}, which is data.group; name the "
                "column that tells series apart"
            )
        series.setdefault(row[data.group] if data.group else "", []).append(numbers)
    made: list[Record] = []
    for name, steps in series.items():
        column = {data.group: name} if data.group else {}
        made += _segments(scenario, np.array(steps, np.float32)[None], column, path)
    return made


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _MOST else None  # NaN is not, either


def _segments(
    scenario: Scenario, values: Values, columns: Mapping[str, str], path: str
) -> list[Record]:
    """Cut a series of shape (ports, time, features) into records."""
    window = scenario.task.forecast.window
    steps = scenario.data.segment or window
    if steps < window:
        raise FedloraError(
            f"data.segment is {steps}, and a forecast takes task.forecast.history + horizon = "
            f"{window} steps; set it to {window} or more, or 0"
        )
    count = values.shape[1] // steps
    if not count:
        whose = f" of {shown(next(iter(columns.values())))}" if columns else ""
        raise FedloraError(
            f"the series{whose} in {path} has {values.shape[1]} time steps, and a record takes "
            f"{steps}; lower data.segment or task.forecast.history, or leave it out"
        )
    parts = [values[:, i * steps : (i + 1) * steps] for i in range(count)]
    return [{VALUES: np.ascontiguousarray(part), **columns} for part in parts]


def _from_array(scenario: Scenario, place: Path, path: str) -> list[Record]:
    data = scenario.data
    named = read_arrays(place)
    array = _chosen(named, data.values, path)
    axes = data.axes or _DEFAULT.get(array.ndim, ())
    if not axes or len(axes) != array.ndim:
        raise FedloraError(
            f"{path} holds an array of shape {array.shape}, and data.axes names {len(axes)} axes; "
            f"name each of them as one of {', '.join(AXES)}, in order"
        )
    _check_parts(scenario, array, axes, path)
    values = _arranged(array, axes)
    odd = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(odd):
        raise FedloraError(
            f"{path} holds NaN, infinity or a number beyond fp32 in record {odd[0] + 1} of "
            f"{len(values)}; mend or leave it out"
        )
    if "record" not in axes:
        return _segments(scenario, values[0], {}, path)[: data.max_rows or None]
    window = scenario.task.forecast.window
    if values.shape[2] < window:
        raise FedloraError(
            f"the records of {path} have {values.shape[2]} time steps, and task.forecast.history + "
            f"horizon is {window}; lower it, or mend data.axes"
        )
    columns = {
        name: [str(item) for item in other.tolist()]
        for name, other in named.items()
        if other is not array and other.ndim == 1 and len(other) == len(values)
    }
    rows = range(min(len(values), data.max_rows or len(values)))
    return [{VALUES: values[i], **{n: column[i] for n, column in columns.items()}} for i in rows]


def _chosen(named: Mapping[str, NDArray[Any]], wanted: Sequence[str], path: str) -> NDArray[Any]:
    there = ", ".join(f"{name} {array.shape}" for name, array in named.items()) or "none"
    if wanted:
        if len(wanted) > 1 or wanted[0] not in named:
            raise FedloraError(
                f"data.values is {shown(', '.join(wanted))}, and {path} has the arrays {there}; "
                "name one of them"
            )
        array = named[wanted[0]]
    else:
        candidates = [a for a in named.values() if a.dtype.kind in "fciu" and a.size]
        candidates = [a for a in candidates if a.ndim > 1] or candidates
        if len(candidates) != 1:
            raise FedloraError(
                f"{path} has the arrays {there}, of which {len(candidates)} could be the series; "
                "name it in data.values"
            )
        array = candidates[0]
    if array.dtype.kind not in "fciu" or not array.size:
        raise FedloraError(
            f"{path} holds {array.dtype} of shape {array.shape} where the series should be; write "
            "an array of numbers, or name another in data.values"
        )
    return array


def _check_parts(scenario: Scenario, array: NDArray[Any], axes: Sequence[str], path: str) -> None:
    """Refuse real and imaginary parts that do not come one after the other, as a front needs it."""
    sizes = [size for size, axis in zip(array.shape, axes, strict=True) if axis == "feature"]
    paired = len(sizes) < 2 or np.iscomplexobj(array) or sizes[0] == 2
    front = scenario.task.forecast.front
    if front != "linear" and not paired:
        raise FedloraError(
            f"{path} has feature axes of {' and '.join(map(str, sizes))}, and task.forecast.front "
            f"is {front}, which takes all real parts, then all imaginary parts; put the axis of 2 "
            "parts first, or write complex numbers"
        )


def _arranged(array: NDArray[Any], axes: Sequence[str]) -> Values:
    """Return real numbers of shape (records, ports, time, features)."""
    order = [place for name in AXES for place, axis in enumerate(axes) if axis == name]
    moved = np.transpose(array, order)
    sizes = [
        math.prod(array.shape[place] for place, axis in enumerate(axes) if axis == name)
        for name in AXES
    ]
    shaped = moved.reshape(sizes)
    if np.iscomplexobj(shaped):
        shaped = np.concatenate([shaped.real, shaped.imag], axis=-1)
    with np.errstate(over="ignore"):  # what overflows is refused
        return np.ascontiguousarray(shaped, dtype=np.float32)
