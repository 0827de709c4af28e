"""Files, states and journals that a crash leaves whole."""

from fedlora.storage.files import (
    append_line,
    check_folder,
    explained,
    held_file,
    held_folder,
    is_locked,
    json_line,
    lock_file,
    open_private,
    read_lines,
    read_object,
    replace_file,
)
from fedlora.storage.outputs import FolderKind, check_new_file, dated_folder

__all__ = [
    "FolderKind",
    "append_line",
    "check_folder",
    "check_new_file",
    "dated_folder",
    "explained",
    "held_file",
    "held_folder",
    "is_locked",
    "json_line",
    "lock_file",
    "open_private",
    "read_lines",
    "read_object",
    "replace_file",
]
