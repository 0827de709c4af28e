"""A tokenizer's chat template: found and rendered as transformers does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from fedlora.errors import FedloraError, shown

Span: TypeAlias = tuple[int, int]

_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
_MEND = (
    "save it there as chat_template.jinja, or render the conversations into a column of texts and "
    "name that in data.text"
)


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a model folder, by name.

    Attributes
    ----------
    folder
        The folder.
    templates
        Text of each template; ``default`` is the one for conversations.
    tokens
        The special tokens that a template may ask for, such as ``bos_token``.
    """

    folder: Path
    templates: Mapping[str, str] = field(default_factory=dict, hash=False)
    tokens: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def read(
        cls, folder: Path, settings: Mapping[str, Any], tokens: Mapping[str, str | None]
    ) -> ChatTemplates:
        """Find the templates of a folder, as ``from_pretrained`` of transformers does.

        Files come before what ``tokenizer_config.json`` says.

        Parameters
        ----------
        folder
            The folder.
        settings
            Content of ``tokenizer_config.json``.
        tokens
            Text of each special token by use, such as ``bos``.

        Raises
        ------
        FedloraError
            When a file cannot be read, or a template is no text.
        """
        found = _from_settings(settings.get("chat_template"), folder)
        files = {"default": folder / _FILE} if (folder / _FILE).is_file() else {}
        more = sorted((folder / _FOLDER).glob("*.jinja"))
        files |= {path.name.removesuffix(".jinja"): path for path in more}
        if files:
            found = {name: _read(path) for name, path in files.items()}
        named = {f"{name}_token": text for name, text in tokens.items() if text is not None}
        return cls(folder, found, named)

    @property
    def digest(self) -> str:
        """SHA-256 of all templates; empty where there is none."""
        text = json.dumps(dict(self.templates), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() if self.templates else ""

    def check(self) -> None:
        """Refuse a folder without a template for conversations, or with one that is no jinja.

        Raises
        ------
        FedloraError
            See above.
        """
        self._compiled()

    @property
    def tagged(self) -> bool:
        """Whether the template says itself what the assistant's turns are."""
        return self._compiled().tracker.seen > 0

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, opens: bool = False
    ) -> tuple[str, list[tuple[int, str]]]:
        """Return the text of a conversation, and what stands between its ``generation`` tags.

        Of each of these transformers takes as first character the number of those before it.

        Parameters
        ----------
        messages
            The conversation.
        opens
            Whether the text ends where an assistant's turn would begin.

        Raises
        ------
        Exception
            Whatever a template may come to.
        """
        compiled = self._compiled()
        parts: list[str] = []
        with compiled.tracker.active(parts) as said:
            given = {"messages": list(messages), "tools": None, "documents": None, **self.tokens}
            for part in compiled.template.generate(**given, add_generation_prompt=opens):
                parts.append(part)
        return "".join(parts), said

    def _compiled(self) -> _Compiled:
        if not self.templates:
            raise FedloraError(f"the tokenizer in {self.folder} has no chat template; {_MEND}")
        text = self.templates.get("default")
        if text is None:
            raise FedloraError(
                f"the tokenizer in {self.folder} has the chat templates "
                f"{', '.join(sorted(self.templates))} and no default; {_MEND}"
            )
        try:
            return _compile(text)
        except jinja2.TemplateError as error:
            where = (
                f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            )
            raise FedloraError(
                f"the chat template in {self.folder} cannot be read ({where}{error}); copy it anew"
            ) from None


def _from_settings(value: Any, folder: Path) -> dict[str, str]:
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    found = value if isinstance(value, dict) else {} if value is None else {"default": value}
    odd = [text for pair in found.items() for text in pair if not isinstance(text, str)]
    if odd:
        raise FedloraError(
            f"{folder / 'tokenizer_config.json'} has {shown(odd[0])} in 'chat_template', where a "
            "text is needed; copy it anew"
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedloraError(f"{path} cannot be read ({error}); copy it anew") from None


@dataclass(frozen=True)
class _Compiled:
    template: jinja2.Template
    tracker: _Generation


class _Generation(Extension):
    """The tag ``generation``, which stands around what an assistant says."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.seen = 0
        self._parts: list[str] | None = None
        self._said: list[tuple[int, str]] = []

    def parse(self, parser: Parser) -> nodes.Node:
        """Make a call of what stands between the tags."""
        line = next(parser.stream).lineno
        self.seen += 1
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_note")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @contextmanager
    def active(self, parts: list[str]) -> Iterator[list[tuple[int, str]]]:
        """Note what stands between the tags, and after how many characters of the parts."""
        self._parts, self._said = parts, []
        try:
            yield self._said
        finally:
            self._parts = None

    def _note(self, caller: Callable[[], str]) -> str:
        said = caller()
        if self._parts is not None:
            self._said.append((sum(map(len, self._parts)), said))
        return said


class _Namespace(Namespace):
    """As transformers has it: no way to what Python keeps under names with underscores."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} is no name for a namespace")


class _Dict:
    """The type ``dict``, of which a template can do no more than make some."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """See ``dict.fromkeys``."""
        return dict.fromkeys(*args)


@lru_cache(maxsize=8)
def _compile(text: str) -> _Compiled:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    template = environment.from_string(text)
    tracker = next(e for e in environment.extensions.values() if isinstance(e, _Generation))
    return _Compiled(template, tracker)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
