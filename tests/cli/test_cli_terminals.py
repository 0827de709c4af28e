"""Whatever a terminal, a pipe or a file cannot take: never a traceback, and another character."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import patient

from fedlora.terminal import show_anything

ROOT = Path(__file__).parents[2]
TELL = shlex.join([sys.executable, "-m", "fedlora"])


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{TELL} {line}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        check=False,
        timeout=patient(120),
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_character_that_an_encoding_lacks_becomes_one_like_it_or_a_question_mark(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show_anything(stream)
    text = "✓ ✗ · … – é ß α 猫 \udce9 → ±"
    stream.write(text)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert len(shown) == len(text)  # or tables would not be straight
    expected = {
        "ascii": "+ x . . - e ? ? ? ? > +",
        "latin-1": "+ x · . - é ß ? ? ? > ±",
        "cp437": "+ x · . - é ß α ? ? > ±",
        "utf-8": text.replace("\udce9", "?"),
    }
    assert shown == expected[encoding]


PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_doctor_and_tables_are_shown_in_ascii():
    found = shell("doctor", **PLAIN)
    assert found.returncode in (0, 1)
    shown = found.stdout.decode("ascii")
    assert "| + | Python" in shown
    assert found.stderr == b""


@pytest.mark.parametrize("columns", ["0", "1", "10", "-3", "many"])
@pytest.mark.parametrize("verb", ["top {run} --once", "keys link"])
def test_a_terminal_of_any_width_takes_a_table(finished, columns, verb):
    found = shell(verb.format(run=finished), COLUMNS=columns, TERM="dumb")
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.strip()


ENDS = [
    ("| true", (0, 1)),  # the reader is gone, perhaps before anything is written
    (">/dev/full", (2,)),
    ("| head -1 >/dev/null", (0, 1)),
    (">&-", (0,)),
    (">&- 2>&- <&-", (0,)),
    (">/dev/null 2>/dev/full", (0,)),
]


@pytest.mark.parametrize(
    ("verb", "end", "statuses"),
    [("keys", *end) for end in ENDS]
    + [(verb, *end) for verb in ("scenarios", "top {run} --once") for end in ENDS[:2]],
)
def test_a_pipe_that_is_closed_and_a_disk_that_is_full_leave_no_traceback(
    finished, verb, end, statuses
):
    found = shell(f"{verb.format(run=finished)} {end}")
    assert found.returncode in statuses
    lines = found.stderr.decode().splitlines()
    assert lines == [line for line in lines if line.startswith("fedlora: cannot go on writing")]
    assert len(lines) == (statuses == (2,))


def test_a_refusal_with_letters_that_the_terminal_lacks_is_a_sentence(finished, tmp_path):
    found = shell(
        f"run quickstart --set task.kind=größe --out {tmp_path}/x", PYTHONIOENCODING="ascii"
    )
    assert found.returncode == 2
    assert b"Traceback" not in found.stderr
    assert "no tasks plug-in is called 'gro?e'" in found.stderr.decode("ascii")
