"""What a site holds itself: ``fedlora doctor --node-key`` and ``--node-config``."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    ssh_key_fingerprint,
)

from fedlora.commands.doctor_server import examine_model
from fedlora.commands.finding import Finding, refused
from fedlora.config import DataConfig, NodeKeys, dashed, is_file, lost_keys
from fedlora.errors import FedloraError, shown
from fedlora.tasks import Record, label_of, load_records, require_column

_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # of NIST, which are those that Flower takes
_NEW_KEY = "copy this site's key anew from where fedlora certs or fedlora kit wrote it"
_KEY = re.compile(
    r"\bdata\.(train|test|text|label|messages|prompt|completion|columns|pattern|record_separator)\b"
)
_SHOWN = 12
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def examine_key(path: Path) -> Iterator[Finding]:
    """Look at a device's private key, by which the server knows the device."""
    try:
        data = path.read_bytes()
        others = path.stat().st_mode & _OTHERS
    except OSError as error:
        yield Finding("node key", f"{path}: {error.strerror}", _NEW_KEY)
        return
    if data.startswith((b"ecdsa-", b"ssh-")):
        yield Finding("node key", f"{path} is a public key", "name the private one, without .pub")
        return
    try:
        key = load_ssh_private_key(data, None)
    except TypeError:
        mend = f"Flower asks for no passphrase: take it off with ssh-keygen -p -f {path}"
        yield Finding("node key", f"{path} is encrypted", mend)
        return
    except Exception as error:  # cryptography has no common ancestor for what it raises here
        yield Finding("node key", f"{path}: {str(error).partition('.')[0]}", _NEW_KEY)
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
        yield Finding("node key", f"{path} is of the kind {kind}", _NEW_KEY)
        return
    digest = ssh_key_fingerprint(key.public_key(), hashes.SHA256())
    print_ = f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"  # as ssh-keygen -lf
    mend = f"chmod 600 {path}: others of this machine may read it" if others else ""
    yield Finding("node key", f"{key.curve.name}, {print_}", mend)


def examine_node(text: str) -> Iterator[Finding]:
    """Look at a node configuration, and at the data, the model and the folders that it names."""
    try:
        config = read_node_config(text)
        keys = NodeKeys.read(config)
    except FedloraError as error:
        yield refused("node configuration", error)
        return
    mend = "" if keys.partition_id is not None else "set partition-id, this device's own number"
    yield Finding("node configuration", ", ".join(config) or "empty", mend)
    yield from _data(keys)
    if keys.model:
        yield from examine_model(keys.model)
    elif not keys.scenario_data:
        yield Finding("model", "none named: scenarios may name models of installed packages alone")
    yield _writable("state folder", keys.states() / "audit.jsonl")
    yield _writable("privacy ledger", keys.ledger())


def read_node_config(text: str) -> dict[str, Any]:
    """Return a node configuration as Flower reads it.

    Raises
    ------
    FedloraError
        When it cannot be read, or Flower drops a pair of it.
    """
    import click
    from flwr.common.config import parse_config_args

    try:
        found: dict[str, Any] = parse_config_args([text])
    except OSError as error:
        raise FedloraError(f"{text}: {error.strerror}; name a file that is there") from None
    except (ValueError, TypeError, click.ClickException) as error:
        why = str(getattr(error, "message", error)).partition("\n")[0]
        where = text if is_file(text) else "--node-config"
        raise FedloraError(
            f"{where} cannot be read ({why:.200}); write key = value, texts in quotes, a list as "
            "one text with commas"
        ) from None
    lost = lost_keys(text, found)
    if lost:
        raise FedloraError(lost)
    return found


def _data(keys: NodeKeys) -> Iterator[Finding]:
    if keys.scenario_data:
        yield Finding("data", "this client's part of what the scenario names, for trials")
        return
    if not keys.data:
        mend = 'set data to this device\'s file, or scenario-data = "true" for a trial'
        yield Finding("data", "none named", mend)
        return
    if keys.limit is not None and not keys.form:
        yield Finding(
            "columns",
            "privacy-epsilon is set, but not which columns are what",
            "set text, and label for classes: a server that chooses could have labels sent as text",
        )
    files: tuple[Literal["train", "test"], ...] = ("train", "test") if keys.test else ("train",)
    for which in files:
        name = "data" if which == "train" else "test"
        try:
            yield from _file(keys, which, name)
        except FedloraError as error:
            yield refused(name, FedloraError(_KEY.sub(_own_name, str(error))))


def _own_name(found: re.Match[str]) -> str:
    """Return what a key of a scenario's data section is called in a node configuration."""
    return "data" if found[1] == "train" else dashed(found[1])


def _file(keys: NodeKeys, which: Literal["train", "test"], name: str) -> Iterator[Finding]:
    """Read a file and look at its columns and labels."""
    plain, form = DataConfig(), dict[str, Any](keys.form)
    config = DataConfig(
        train=keys.data,
        test=keys.test,
        columns=keys.columns,
        label=keys.label or plain.label,
        record_separator=keys.record_separator or plain.record_separator,
        pattern=keys.pattern or plain.pattern,
        **form,
    )
    label = {config.label: "data.label"} if keys.label else {}
    used = (config.columns_read if keys.form else {}) | label
    records = load_records(config, which, labelled=bool(keys.label), texts=False)
    columns = list(dict.fromkeys(column for record in records for column in record))
    yield Finding(
        name, f"{len(records)} records; columns {', '.join(map(shown, columns[:_SHOWN]))}"
    )
    for column, key in used.items():
        require_column(records, column, key, getattr(config, which))
    if not keys.form:
        named = ["text", *([] if keys.label else ["label"])]
        yield Finding(f"{name}: columns", f"{' and '.join(named)} are those that a scenario names")
    if keys.label:
        yield _labels(keys, records, f"{name}: labels")


def _labels(keys: NodeKeys, records: Sequence[Record], what: str) -> Finding:
    counts = Counter(label_of(record, keys.label) for record in records)
    told = [f"{shown(str(label))} {count}" for label, count in counts.most_common(_SHOWN)]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    odd = [str(label) for label in counts if keys.classes and label not in keys.classes]
    mend = ""
    if odd:
        mend = f"mend {shown(odd[0])} in the data, or add it to {dashed('classes')}"
    elif len(counts) == 1:
        mend = f"nothing is learnt of one class: is {keys.label!r} the right column?"
    return Finding(what, f"{len(counts)}: {', '.join(told)}{more}", mend)


def _writable(what: str, path: Path) -> Finding:
    """Tell whether a file can be made or written."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    right = os.W_OK if there.is_file() else os.W_OK | os.X_OK
    good = os.access(there, right) and (there.is_dir() or there == path)
    who = os.environ.get("USER") or f"user {os.getuid()}"
    mend = "" if good else f"let {who} write {there}, or name another place in the configuration"
    return Finding(what, str(path if what.endswith("ledger") else path.parent), mend)
