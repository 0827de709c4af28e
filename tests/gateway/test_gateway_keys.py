"""The gateway's key is nobody else's."""

from __future__ import annotations

import pytest

from clients.gateway.keys import drawn_key, read_key
from fedlora.errors import FedloraError


def test_a_key_is_drawn_anew_and_one_of_a_private_file_is_taken(tmp_path):
    key = drawn_key()
    assert key != drawn_key()
    file = tmp_path / "key"
    file.write_text(key + "\n")
    file.chmod(0o600)
    assert read_key(file) == key


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("a-key-of-the-test", 0o640, "has mode 0640; chmod 600 it"),
        ("a-key-of-the-test", 0o604, "has mode 0604"),
        ("short", 0o600, "holds 5 characters"),
        ("a key with blanks in it", 0o600, "without blanks"),
        ("schlüssel-schlüssel", 0o600, "no key"),
        ("x" * 600, 0o600, "no key"),
    ],
)
def test_a_file_that_others_read_or_without_a_key_is_refused(tmp_path, content, mode, said):
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    file.chmod(mode)
    with pytest.raises(FedloraError, match=said):
        read_key(file)


def test_a_key_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FedloraError, match="No such file"):
        read_key(tmp_path / "none")
