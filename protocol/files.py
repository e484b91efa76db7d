"""Writing a file so that whoever opens it sees the old content or the new, never a part, also after a crash.

`create_file` makes what must not exist yet, a key for example; `replace_file` puts new content in the place of old.
"""

import os
import secrets
from pathlib import Path


def create_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file.

    Args:
        path: The file; its directory must exist.
        data: All of its content.
        mode: Its permissions from the first moment on, before the process's umask.

    Raises:
        FileExistsError: There is a file already; it is left as it is.
        OSError: The file cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put ``data`` at ``path`` in one step.

    A temporary file in the same directory is written, synced and renamed; then the directory is synced. A file that was
    at ``path`` is replaced, and stays as it was if anything fails before the renaming.

    Args:
        path: The file; its directory must exist.
        data: All of its content.
        mode: Its permissions, before the process's umask.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
