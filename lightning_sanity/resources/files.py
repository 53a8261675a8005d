"""Files that appear whole or not at all, and never in the place of what was read."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

fcntl: Any = None
with suppress(ImportError):  # not on Windows
    import fcntl

StrPath = str | os.PathLike[str]
_SUFFIX = ".partial"
_YOUNG = 60.0  # seconds in which a partial file may not have been locked by its writer yet
_OLD = 86400.0  # seconds after which one without a lock is nobody's


def write_whole(path: StrPath, data: str | bytes | Iterable[bytes]) -> Path:
    """Write a file that is never seen half written: beside its place under a name of its own, then renamed.

    As ``cp`` does, a symbolic link is followed, and the permissions of a file that is replaced are kept. Folders on
    the way are made. What a process that was killed left behind for the same file is cleaned up.

    Args:
        path: Where to.
        data: Bytes, whole or in pieces, or text for UTF-8; what UTF-8 cannot hold is escaped. If making a piece
            raises, nothing is written.

    Returns:
        ``path`` as it was given.

    Raises:
        OSError: If it cannot be written, or if a folder, a device or a pipe is in its place.
    """
    place = writable(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # A digest, for a name may already be as long as the file system takes.
    prefix = f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}-"
    _clean_up(place.parent, prefix)
    partial = place.with_name(f"{prefix}{secrets.token_hex(8)}{_SUFFIX}")
    whole = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    pieces = [whole] if isinstance(whole, bytes) else whole
    try:
        with open(partial, "xb") as file:
            _lock(file.fileno())
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                os.chmod(partial, place.stat().st_mode & 0o7777)
            os.replace(partial, place)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    return Path(path)


def writable(path: StrPath) -> Path:
    """The place of a file that may be written, symbolic links followed.

    Raises:
        OSError: If there is something else than a file, or one that is read-only.
    """
    place = Path(os.path.realpath(path))
    if not str(path) or place.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: name a file in it")
    given = Path(os.path.abspath(path))
    if any(str(parent) in ("/dev", "/proc") for parent in given.parents) or (place.exists() and not place.is_file()):
        raise OSError(f"'{path}' is no regular file, which is all that can be written whole")
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(f"'{path}' is read-only")
    return place


def check_outputs(outputs: Mapping[str, StrPath | None], inputs: Iterable[StrPath]) -> None:
    """Refuse outputs that would be written over an input, over one another, or in the place of no file.

    Args:
        outputs: Option and path; None where nothing is to be written.
        inputs: All that is read; of a folder, every JSON file in it or one level below.

    Raises:
        ValueError: Which one, and over what.
        OSError: See ``writable``.
    """
    read = [file for path in inputs for file in (path, *_inside(Path(path)))]
    taken: dict[str, StrPath] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        place = writable(path)
        for other in read:
            if _same(place, other):
                raise ValueError(f"{option} '{path}' would be written over '{other}', which is read: name another file")
        for earlier, other in taken.items():
            if _same(place, other):
                raise ValueError(f"{option} and {earlier} both name '{path}': name two files")
        taken[option] = path


def regular(path: StrPath, largest: int) -> Path:
    """``path`` if it is a file that can be read to its end.

    Args:
        path: Of the file.
        largest: Most bytes it may have.

    Raises:
        ValueError: If it is empty, not a regular file (whose end may never come), or larger.
        OSError: If there is none.
    """
    if not str(path):
        raise ValueError("an empty path names no file: is a variable unset?")
    size = Path(path).stat().st_size
    if not Path(path).is_file():
        raise ValueError(f"'{path}' is no regular file")
    if size > largest:
        raise ValueError(f"'{path}' is larger than {largest >> 20} MiB, which no such file is")
    return Path(path)


def _inside(folder: Path) -> list[Path]:
    return [*folder.glob("*.json"), *folder.glob("*/*.json")] if folder.is_dir() else []


def _same(one: StrPath, other: StrPath) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # hard links, and file systems that ignore case
    except OSError:
        return False


def _lock(descriptor: int) -> bool:
    """Whether this process now holds the lock of an open file; the end of a process frees it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _clean_up(folder: Path, prefix: str) -> None:
    """Remove partial files whose writer is gone."""
    for left in folder.glob(f"{prefix}*{_SUFFIX}"):
        with suppress(OSError), open(left, "rb") as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if age > _OLD or (age > _YOUNG and _lock(file.fileno())):
                left.unlink()
