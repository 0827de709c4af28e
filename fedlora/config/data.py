"""The scenario's sections on records: where they are, what is in them, who has which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fedlora.config.ranges import check_ranges, within
from fedlora.errors import require, shown

AXES: Final = ("record", "port", "time", "feature")
"""What an axis of an array of series may be, in the order in which they are used."""


@dataclass(frozen=True)
class DataConfig:
    r"""Which records there are and how they are read.

    Attributes
    ----------
    train, test
        csv, tsv, jsonl or txt file, folder of a saved Hugging Face dataset, ``package:...``, or
        ``hub:NAME``. ``test`` is a common test file; when it is empty, each client keeps
        ``holdout`` of its own rows for evaluation.
    columns
        Column names of a csv or tsv file without a header line.
    text, label
        Names of the columns that hold the text and the class; with ``messages`` or ``prompt``
        there is no ``text``.
    messages
        For language modelling, in place of ``text``: column of the conversations, each a list of
        messages with role and content. The tokenizer's chat template renders them, and the
        assistant's turns are trained on.
    prompt, completion
        For language modelling, in place of ``text``: columns of the prompt and of what follows it,
        which is trained on.
    chat
        Whether the chat template renders prompt and completion as a user's and an assistant's turn
        (``yes``), or they follow each other as they are (``no``). ``auto``: it does where the
        tokenizer has one.
    prompt_separator
        For language modelling: the part of the text before this string is the prompt, whose tokens
        are not trained on. Empty: every token is trained on.
    record_separator
        For txt: what separates records (a line break by default).
    pattern
        For txt: a regular expression with named groups that become columns, for example
        ``(?P<speaker>.+?):\n(?P<text>.+)``.
    split
        Split of a saved or hub dataset that is trained on.
    holdout
        Fraction of each client's rows that is held out for evaluation when ``test`` is empty.
    max_rows
        Use only the first rows of each file; 0 means all.
    values
        For forecasts: columns of the series (empty: all that hold numbers), or the name of the
        array in an npz file.
    group
        For forecasts from rows: column that tells series apart.
    axes
        For forecasts from arrays: what each axis is, in order, of ``record``, ``port`` (each a
        sample of its own), ``time`` and ``feature``.
    segment
        For forecasts from series that are no records yet: time steps of a record; 0: those of one
        sample.
    """

    train: str = "package:simulations/quickstart/requests.csv"
    test: str = ""
    columns: tuple[str, ...] = ()
    text: str = "text"
    label: str = "label"
    messages: str = ""
    prompt: str = ""
    completion: str = ""
    chat: Literal["auto", "yes", "no"] = "auto"
    prompt_separator: str = ""
    record_separator: str = "\n"
    pattern: str = ""
    split: str = "train"
    holdout: float = within(0.1, 0.0, 0.9999)
    max_rows: int = within(0, 1, 10**12, zero="all rows")
    values: tuple[str, ...] = ()
    group: str = ""
    axes: tuple[str, ...] = ()
    segment: int = within(0, 2, 10**9, zero="those of one sample")

    def __post_init__(self) -> None:
        check_ranges(self, "data.")
        check_axes(self.axes)
        for key in ("train", "test"):
            require(
                getattr(self, key) != "hub:",
                f"data.{key} is 'hub:'; name a dataset, such as hub:ag_news",
            )
        default = type(self).text
        text = "" if self.text == default else self.text
        check_columns(text, self.messages, self.prompt, self.completion, self.prompt_separator)
        require(
            not self.messages or self.chat != "no",
            f"data.chat is 'no', and data.messages {shown(self.messages)} are rendered by the chat "
            "template alone; set data.chat to auto",
        )
        # One of the forms has columns; the others' are empty, in what is written of a run as well.
        if self.messages or self.prompt:
            object.__setattr__(self, "text", "")
        elif not self.text:
            object.__setattr__(self, "text", default)

    @property
    def named(self) -> bool:
        """Whether it names records; else they are the quickstart's, or devices bring theirs."""
        return self.train != type(self).train or bool(self.test)

    @property
    def form(self) -> Literal["text", "messages", "prompt"]:
        """What a record is: a text, a conversation, or a prompt with its completion."""
        return "messages" if self.messages else "prompt" if self.prompt else "text"

    @property
    def columns_read(self) -> dict[str, str]:
        """The columns that hold what is learnt, and the key that names each."""
        keys = ("prompt", "completion") if self.form == "prompt" else (self.form,)
        return {getattr(self, key): f"data.{key}" for key in keys}

    @property
    def meaning(self) -> list[str]:
        """What of the columns is learnt, of the same values for the same meaning."""
        text = [self.text, self.label, self.prompt_separator]
        series = [*self.values, self.group, *self.axes, str(self.segment)]
        text += series if any(series[:-1]) or self.segment else []
        return text if self.form == "text" else [*text, *self.columns_read, self.renders]

    @property
    def renders(self) -> Literal["auto", "yes", "no"]:
        """Whether the chat template renders the records; ``auto``: where there is one."""
        if self.messages:
            return "yes"
        return self.chat if self.prompt else "no"


def check_axes(axes: Sequence[str]) -> None:
    """Refuse axes that are none, or that leave open which is time.

    Raises
    ------
    FedloraError
        When one is unknown, time is not there once, or records are not.
    """
    odd = next((axis for axis in axes if axis not in AXES), None)
    require(odd is None, f"data.axes has {shown(odd)}; name each axis as one of {', '.join(AXES)}")
    require(
        not axes or axes.count("time") == 1,
        f"data.axes is {shown(', '.join(axes))}, which names time {axes.count('time')} times; name "
        "it once",
    )


def check_columns(
    text: str, messages: str, prompt: str, completion: str, separator: str, prefix: str = "data."
) -> None:
    """Refuse columns of more than one form of records, and half of one.

    Parameters
    ----------
    text, messages, prompt, completion
        Columns; empty where none is named.
    separator
        What ends a prompt within a text.
    prefix
        What stands before a key's name.

    Raises
    ------
    FedloraError
        When texts, conversations, or prompts and completions are named together.
    """
    require(
        bool(prompt) == bool(completion),
        f"{prefix}{'prompt' if prompt else 'completion'} is {shown(prompt or completion)} without "
        f"{prefix}{'completion' if prompt else 'prompt'}; name both columns",
    )
    check_one_form({"messages": messages, "prompt": prompt, "text": text}, prefix)
    form = {"messages": messages, "prompt": prompt}
    check_one_form({**form, "prompt_separator": separator}, prefix)
    require(
        not prompt or prompt != completion,
        f"{prefix}prompt and {prefix}completion are both the column {shown(prompt)}; name two",
    )


def check_one_form(columns: Mapping[str, Any], prefix: str = "data.") -> None:
    """Refuse columns of which a record can have but one.

    Parameters
    ----------
    columns
        Names by key; empty where none is named.
    prefix
        What stands before a key's name.

    Raises
    ------
    FedloraError
        When several are named.
    """
    given = [f"{prefix}{key} {shown(name)}" for key, name in columns.items() if name]
    require(
        len(given) < 2,
        f"{' and '.join(given)} are set together, and a record is one of conversation, prompt with "
        "completion, or text; name the columns of one of them",
    )


@dataclass(frozen=True)
class PartitionConfig:
    """How the simulation spreads the records over clients.

    Attributes
    ----------
    kind
        ``iid``, ``dirichlet`` over labels, ``shards`` of sorted labels, or ``column``: the groups
        of one column (such as a speaker) are dealt to the clients whole.
    alpha
        Dirichlet concentration; small values give each client few labels.
    shards_per_client
        Number of label shards a client receives.
    column
        Column whose groups stay together for ``column``; for ``dirichlet`` and ``shards`` the
        label column is used when it is empty.
    min_rows
        Smallest number of rows that a client may end up with.
    """

    kind: Literal["iid", "dirichlet", "shards", "column"] = "iid"
    alpha: float = within(0.5, 1e-6, 1e6)
    shards_per_client: int = within(2, 1, 10**6)
    column: str = ""
    min_rows: int = within(8, 0, 10**9)

    def __post_init__(self) -> None:
        check_ranges(self, "partition.")
        require(
            self.kind != "column" or bool(self.column),
            "partition.kind is column but partition.column is empty; name the column",
        )
