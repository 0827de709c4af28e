"""What the shipped scenarios read beyond this package, by digest, and making it of originals."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fedlora.errors import FedloraError
from fedlora.storage import explained, replace_file

SHARED: Final = "$FEDLORA_SHARED/"
"""What paths of such files begin with in a scenario."""

_CHUNK: Final = 1 << 20
_TOPICS: Final = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}


@dataclass(frozen=True)
class Original:
    """A public file, by its content.

    Attributes
    ----------
    name
        Its path where it is published.
    size
        In bytes.
    sha256
        Its digest.
    make
        What makes of its content the file that is read.
    """

    name: str
    size: int
    sha256: str
    make: Callable[[bytes], bytes]


@dataclass(frozen=True)
class SourceFile:
    """A file below ``$FEDLORA_SHARED``.

    Attributes
    ----------
    path
        Where it is there.
    size, sha256
        Its size in bytes, and its digest.
    originals
        Of which of them it is made; the first is the file itself.
    """

    path: str
    size: int
    sha256: str
    originals: Sequence[Original]

    def is_at(self, place: Path) -> bool:
        """Tell whether a place holds it, whole."""
        return _size(place) == self.size and _digest(place) == self.sha256


@dataclass(frozen=True)
class Source:
    """A data set or a model.

    Attributes
    ----------
    name
        By which it is prepared.
    what, source, version, licence
        In words.
    files
        Its files.
    """

    name: str
    what: str
    source: str
    version: str
    licence: str
    files: Sequence[SourceFile]


def sources() -> dict[str, Source]:
    """Return all that shipped scenarios read beyond this package, by name."""
    text = (files("simulations") / "sources.toml").read_text(encoding="utf-8")
    return {name: _source(name, table) for name, table in tomllib.loads(text).items()}


def find_source(name: str) -> Source:
    """Return a data set or a model.

    Raises
    ------
    FedloraError
        When there is none of that name.
    """
    known = sources()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise FedloraError(f"no data set or model is called {name!r}; {mend}")
    return known[name]


def prepare(
    source: Source, originals: Path, out: Path, *, overwrite: bool = False
) -> list[tuple[Path, Path | None]]:
    """Make a source's files of public originals, which are known by their digests.

    Parameters
    ----------
    source
        What is made.
    originals
        Folder with the public files as they come, in whatever folders below it.
    out
        What ``$FEDLORA_SHARED`` is to be.
    overwrite
        Whether a file with other content is replaced.

    Returns
    -------
    list of (Path, Path or None)
        Each file, and the original that it was made of; None where it was there already.

    Raises
    ------
    FedloraError
        When an original is missing or has another content, or a file of other content is there;
        nothing has been written then.
    """
    if not originals.is_dir():
        raise FedloraError(
            f"--from {originals} is no folder; name the one that holds the originals"
        )
    found: list[tuple[SourceFile, Original | None, Path]] = []
    by_size = _by_size(originals)
    for file in source.files:
        place = out / file.path
        if file.is_at(place):
            found.append((file, None, place))
            continue
        if os.path.lexists(place) and not overwrite:
            raise FedloraError(
                f"{place} is there with another content than sha256 {file.sha256}; replace it with "
                "--overwrite, or name another --out"
            )
        found.append((file, *_find(source, file, originals, by_size)))
    made: list[tuple[Path, Path | None]] = []
    for file, original, place in found:
        target = out / file.path
        if original is not None:
            with explained(place):
                content = original.make(place.read_bytes())
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise FedloraError(f"{place} changed while it was read; begin again")
            replace_file(target, content)
        made.append((target, None if original is None else place))
    return made


def _find(
    source: Source, file: SourceFile, folder: Path, by_size: Mapping[int, Sequence[Path]]
) -> tuple[Original, Path]:
    """Return an original of a file and where it is."""
    for original in file.originals:
        for place in by_size.get(original.size, ()):
            if _digest(place) == original.sha256:
                return original, place
    wanted = file.originals[0]
    names = {Path(original.name.partition(" ")[0]).name for original in file.originals}
    alike = sorted(path for paths in by_size.values() for path in paths if path.name in names)
    there = f"{folder} holds no file with the content of"
    if alike:
        there = f"{alike[0]} has {_size(alike[0]):,} bytes, sha256 {_digest(alike[0])}, unlike"
    raise FedloraError(
        f"{there} {wanted.name} ({wanted.size:,} bytes, sha256 {wanted.sha256}), of which "
        f"{file.path} is made; get it from {source.source}, {source.version}, unchanged"
    )


def _by_size(folder: Path) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for path in _files_below(folder):
        found.setdefault(_size(path), []).append(path)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    with explained(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with explained(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _source(name: str, table: Mapping[str, Any]) -> Source:
    told = {key: str(table[key]) for key in ("what", "source", "version", "licence")}
    return Source(name, **told, files=[_file(entry) for entry in table["files"]])


def _file(entry: Mapping[str, Any]) -> SourceFile:
    path, size, digest = str(entry["path"]), int(entry["bytes"]), str(entry["sha256"])
    originals = [Original(str(entry["original"]), size, digest, lambda content: content)]
    if other := entry.get("made_from"):
        make = _MAKE[other["how"]]
        originals.append(Original(other["original"], other["bytes"], other["sha256"], make))
    return SourceFile(path, size, digest, originals)


def _from_ag_news_csv(content: bytes) -> bytes:
    """Return description and topic, tab between them, of rows of topic, title and description."""
    rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
    made = io.StringIO(newline="")
    write = csv.writer(made, delimiter="\t", lineterminator="\n")
    write.writerows((text, _TOPICS[topic]) for topic, _, text in rows)
    return made.getvalue().encode("utf-8")


_MAKE: Final = {"ag_news_csv": _from_ag_news_csv}
