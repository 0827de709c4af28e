"""Scenarios as TOML: reading, writing, and overriding single keys."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import json
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from fedlora.config.data import check_one_form
from fedlora.config.scenario import Scenario
from fedlora.errors import FedloraError, require, shown
from fedlora.unicode import require_unicode

T = TypeVar("T")

_ENDLESS = re.compile(r"\d{4300,}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WORDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}


_NEW: Final = {
    "data": ("values", "group", "axes", "segment"),
    "task": ("forecast",),
    "front": ("share",),
    "train": ("overlap",),
    "link": ("end_weight", "end_gradient", "end_weight_bits", "end_gradient_bits"),
}


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file; what lies beside it is made absolute.

    A relative ``python_path`` starts from the file's folder. ``data.train``, ``data.test``,
    ``model.path``, ``lora.start`` and the paths of a channel's trace do so where something of that
    name lies there; else they stay as they are, and start from the working directory.

    Raises
    ------
    FedloraError
        When the file cannot be read or is not a valid scenario.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FedloraError(
            f"cannot read scenario {path}: {error.strerror}; check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise FedloraError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    return _from_folder(scenario_from_toml(text, source=str(path)), path.parent)


def scenario_from_toml(text: str, *, source: str = "scenario") -> Scenario:
    """Read a scenario from TOML text.

    Raises
    ------
    FedloraError
        When the text is not TOML, a key is unknown (the nearest known one is named), or a value
        has the wrong type or is out of range.
    """
    table = parse_toml(text, source=source)
    _check_forms(table.get("data"))
    return read_section(Scenario, table)


def parse_toml(text: str, *, source: str = "scenario") -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises
    ------
    FedloraError
        When it is none.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FedloraError(f"{source} is not valid TOML: {error}; mend that line") from None
    except (ValueError, RecursionError):  # Python reads no whole number of over 4,300 digits
        long = _ENDLESS.search(text)
        what = f"a number of {len(long[0])} digits" if long else "lists or tables nested too deep"
        line = text.count("\n", 0, long.start() if long else 0) + 1
        where = f"line {line} of {source}" if long else source
        raise FedloraError(f"{where} has {what}; write less") from None


def scenario_from_table(table: Mapping[str, Any], folder: Path) -> Scenario:
    """Make a scenario from a table whose relative paths start from a folder.

    Raises
    ------
    FedloraError
        See ``load_scenario``.
    """
    _check_forms(table.get("data"))
    return _from_folder(read_section(Scenario, table), folder)


def scenario_to_toml(scenario: Scenario) -> str:
    """Write a scenario, as ``scenario_from_toml`` reads it back.

    Every key is there, but for some of later releases where they say nothing: a device of a release
    that does not know them still takes part in a task of texts.
    """
    scalars, tables = [], []
    for item in fields(scenario):
        value = getattr(scenario, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            table, plain = dataclasses.asdict(value), dataclasses.asdict(type(value)())
            spare = [key for key in _NEW.get(item.name, ()) if table[key] == plain[key]]
            if kept := {key: own for key, own in table.items() if key not in spare}:
                tables.append(_table(item.name, kept))
        else:
            scalars.append(f"{item.name} = {_toml(value)}")
    return "\n".join(scalars) + "\n\n" + "\n\n".join(tables) + "\n"


def with_overrides(scenario: Scenario, assignments: Sequence[str]) -> Scenario:
    """Apply ``section.key=value`` assignments, where the value is TOML or a bare word.

    ``none`` unsets a key that may be unset, such as ``privacy.epsilon``.
    Relative paths start from the working directory and are made absolute; see ``load_scenario``.

    Raises
    ------
    FedloraError
        When an assignment does not parse or names an unknown key.
    """
    table = dataclasses.asdict(scenario)
    given: dict[str, Any] = {}
    for assignment in assignments:
        require_unicode(assignment, "a --set", "give it as UTF-8")
        name, sign, text = assignment.partition("=")
        require(
            bool(sign) and bool(name.strip()),
            f"cannot read --set {shown(assignment)}; write it as section.key=value",
        )
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except (ValueError, RecursionError):
            require(
                not text.lstrip().startswith(("[", "{")),
                f"cannot read --set {shown(assignment)}; write strings within a list in quotes, "
                'such as ["a", "b"]',
            )
            value = text
        place: Any = table
        *sections, key = name.strip().split(".")
        for section in sections:
            if not isinstance(place.get(section), dict):
                raise FedloraError(_unknown(".".join(sections), place, section))
            place = place[section]
        if key not in place and sections[-1:] != ["options"]:
            raise FedloraError(_unknown(name.strip(), place, key))
        place[key] = value
        if sections == ["data"]:
            given[key] = value
    _check_forms(given)
    return _from_folder(read_section(Scenario, table), Path())


def assignment(key: str, value: object) -> str:
    """Return a key and its value as ``with_overrides`` takes them; None unsets the key.

    Raises
    ------
    FedloraError
        When the value is nothing that a scenario can hold.
    """
    unset = value is None and ".options." not in str(key)  # an option may mean the text
    return f"{key}={'none' if unset else _toml(_plain(value, str(key)))}"


def _check_forms(data: Any) -> None:
    """Refuse columns of several forms of records, also where one is named as it is by default."""
    if isinstance(data, Mapping):
        check_one_form({key: data.get(key, "") for key in ("messages", "prompt", "text")})


def _from_folder(scenario: Scenario, folder: Path) -> Scenario:
    """Make paths absolute: other processes, and a later resume, stand elsewhere."""
    place = functools.partial(_beside, folder)
    channel, options = scenario.channel, scenario.channel.options
    if channel.model == "trace":
        traces = {key: options[key] for key in ("path", "up_path") if key in options}
        found = {key: _each(place, path) for key, path in traces.items()}
        channel = replace(channel, options={**options, **found})
    python_path = scenario.python_path
    if python_path:
        require("\0" not in python_path, f"python_path is {python_path!r}; name a folder")
        python_path = str((folder / Path(python_path).expanduser()).resolve())
    return replace(
        scenario,
        python_path=python_path,
        model=replace(scenario.model, path=place(scenario.model.path)),
        data=replace(
            scenario.data, train=place(scenario.data.train), test=place(scenario.data.test)
        ),
        lora=replace(scenario.lora, start=place(scenario.lora.start)),
        channel=channel,
    )


def _each(place: Callable[[str], str], path: Any) -> Any:
    """Return a path or each of a list of them in its place; what is neither stays as it is."""
    if isinstance(path, (list, tuple)):
        return [_each(place, one) for one in path]
    return place(path) if isinstance(path, str) else path


def _beside(folder: Path, path: str) -> str:
    """Return the absolute path of what lies in a folder, and any other path as it is."""
    if not path or path.startswith(("/", "~", "package:", "hub:")):
        return path
    if not os.path.exists(folder / path):  # it takes any text, a Path does not
        return path
    # Links are kept, as a file's name tells its kind, and so are names that would be expanded.
    absolute = str(folder.resolve() / path)
    return path if "$" in absolute else absolute


def read_section(cls: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
    """Make a configuration dataclass from a table, and those within it from the tables in it.

    Parameters
    ----------
    cls
        The dataclass.
    table
        Values by field.
    prefix
        What error messages put before a field's name.

    Raises
    ------
    FedloraError
        When a key is unknown, or a value has the wrong type or is out of range.
    """
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    values = {}
    for key, value in table.items():
        if key not in known:
            raise FedloraError(_unknown(prefix + key, known, key))
        example = known[key].metadata.get("example", "{name = value}")
        values[key] = _convert(hints[key], value, prefix + key, example)
    return cls(**values)


@functools.lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; Python compiles them anew at every call."""
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, name: str, example: str = "") -> Any:
    origin = typing.get_origin(hint)
    if is_dataclass(hint):
        require(
            isinstance(value, Mapping), f"{name} is {shown(value)}; it is a table, write [{name}]"
        )
        return read_section(typing.cast(type, hint), value, name + ".")
    if origin is Literal:
        choices = typing.get_args(hint)
        require(value in choices, f"{name} is {shown(value)}; choose one of {', '.join(choices)}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            value = [value]
        require(isinstance(value, (list, tuple)), f"{name} is {shown(value)}; write a list")
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, item, name) for item in value)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, name)
    if origin is not None:
        require(
            isinstance(value, Mapping), f"{name} is {shown(value)}; it is a table, write {example}"
        )
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        require(
            abs(value) <= sys.float_info.max, f"{name} is {shown(value)}; write a finite number"
        )
        return float(value)
    right = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    require(right, f"{name} is {shown(value)}; write {_WORDS.get(hint, hint.__name__)}")
    return value


def _plain(value: Any, name: str) -> Any:
    """Return a value as TOML can hold it: numbers and arrays of NumPy and torch become Python's."""
    if callable(own := getattr(value, "tolist", None)):
        return _plain(own(), name)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, int, float, datetime.date, datetime.time)):
        return value
    raise FedloraError(
        f"{name} is {shown(value)}, which no scenario can hold; write a text, a number, true or "
        "false, or a list or table of these"
    )


def _unknown(name: str, known: Mapping[str, Any], key: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    mend = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(sorted(known))}"
    return f"unknown scenario key {name}; {mend}"


def _table(name: str, values: Mapping[str, Any]) -> str:
    lines, nested = [f"[{name}]"], []
    for key, value in values.items():
        if isinstance(value, Mapping):
            if value:
                nested.append(_table(f"{name}.{_key(key)}", value))
        elif value is not None:
            lines.append(f"{_key(key)} = {_toml(value)}")
    return "\n\n".join(["\n".join(lines), *nested])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)
