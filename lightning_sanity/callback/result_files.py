"""Where a run keeps its results: beside its checkpoints, in files that replace no other's."""

from __future__ import annotations

import glob
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_OLD = 86400.0  # seconds after which a file that was never finished is nobody's

Save = Callable[[Path], Any]
"""Writes a file at a local path that appears whole or not at all, as ``files.write_whole`` does."""


def home(trainer: Any) -> str:
    """The folder of a run, as ``ModelCheckpoint`` resolves it for its checkpoints: of the first logger, else the root.

    Args:
        trainer: Of either Lightning package.
    """
    root = str(trainer.default_root_dir)
    logger = next(iter(trainer.loggers), None)
    if logger is None:
        return root
    directory = getattr(logger, "log_dir", None)
    if directory is not None:  # TensorBoard, CSV: the same folder, also where the name is empty
        return str(directory)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(str(logger.save_dir or root), str(logger.name), version)


def is_remote(folder: str) -> bool:
    """Whether a folder is on another file system than this machine's own."""
    return "://" in folder and not folder.startswith("file://")


class Folder:
    """A folder, local or of a remote file system, whose files appear whole or not at all.

    Args:
        path: A path, or an address such as ``s3://bucket/run`` that ``fsspec`` understands.
    """

    def __init__(self, path: str) -> None:
        self.path = path.removeprefix("file://")
        self._system: Any = None
        if is_remote(self.path):
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            self._system, self._place = url_to_fs(self.path)

    def __str__(self) -> str:
        return self.path

    def write(self, name: str, save: Save) -> str:
        """Write a file, in the place of one that is there.

        Raises:
            OSError: If it cannot be written.
        """
        if self._system is not None:
            return self._upload(name, save)
        save(Path(self.path, name))
        return os.path.join(self.path, name)

    def add(self, names: Iterator[str], save: Save) -> str:
        """Write a file under the first of the names that no other has, whoever writes at the same time.

        Returns:
            Its name.

        Raises:
            OSError: If it cannot be written.
        """
        if self._system is not None:
            name = next(each for each in names if not self._system.exists(f"{self._place}/{each}"))
            self._upload(name, save)
            return name
        with self._unnamed(save) as partial:
            for name in names:
                with suppress(FileExistsError):
                    self._settle(partial, Path(self.path, name))
                    return name
        raise OSError(f"no name is left for a file in '{self.path}'")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if self._system is not None:
            return bool(self._system.exists(f"{self._place}/{name}"))
        return Path(self.path, name).exists()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._system is not None:
            if self.has(name):
                self._system.rm(f"{self._place}/{name}")
            return
        Path(self.path, name).unlink(missing_ok=True)

    def pictures(self, of: str) -> list[Path]:
        """The PNG files beside a result of that name, which end on it; none in a remote folder."""
        return [] if self._system is not None else list(Path(self.path).glob(f"*-{glob.escape(of)}.png"))

    @contextmanager
    def _unnamed(self, save: Save) -> Iterator[Path]:
        """A written file whose name is still to be found, gone afterwards; so are those of killed processes."""
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".*.part*"):
            with suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _OLD:
                    old.unlink()
        partial = folder / f".new-{secrets.token_hex(8)}.part"
        try:
            save(partial)
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def _settle(partial: Path, place: Path) -> None:
        """Give a file its name, unless the name is taken."""
        try:
            os.link(partial, place)
        except FileExistsError:
            raise
        except OSError as error:  # a file system without links
            if place.exists():
                raise FileExistsError(str(place)) from error
            os.replace(partial, place)

    def _upload(self, name: str, save: Save) -> str:
        with TemporaryDirectory() as folder:
            local = Path(folder, name)
            save(local)
            self._system.makedirs(self._place, exist_ok=True)
            self._system.put_file(str(local), f"{self._place}/{name}")
        return f"{self.path}/{name}"
