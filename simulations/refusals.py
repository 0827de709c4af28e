"""What a user's mistake is in modules that are run by themselves: one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedlora.errors import FedloraError


@contextmanager
def one_sentence() -> Iterator[None]:
    """Let a user's mistake in a module that is run by itself be one sentence and status 2.

    ``fedlora``'s own command does the same for its verbs.
    """
    try:
        yield
    except FedloraError as error:
        sentence = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        sentence = f"cannot use {error.filename}: {error.strerror}; check path and rights"
    else:
        return
    print(sentence, file=sys.stderr)
    sys.exit(2)
