"""Texts that are no Unicode: halves of a character, which no file and no tokenizer takes.

JSON may write one half of a surrogate pair, and Python stands such halves for bytes of a command
line or a pipe that are no UTF-8.
"""

from __future__ import annotations

from fedlora.errors import FedloraError

_SHOWN_CHARACTERS = 20


def require_unicode(text: str, where: str, mend: str) -> None:
    """Refuse a text that cannot be written as UTF-8.

    Parameters
    ----------
    text
        The text.
    where, mend
        Where it stands, and what is to be done about it, for the message.

    Raises
    ------
    FedloraError
        When it holds half a surrogate pair; the message quotes what is around it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - _SHOWN_CHARACTERS) : error.end + _SHOWN_CHARACTERS]
        raise FedloraError(
            f"{where} has {around!a}, which is no UTF-8 text at {text[error.start]!a}; {mend}"
        ) from None
