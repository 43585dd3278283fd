"""Checkpoints of a training on disk: each complete or absent, whatever moment the run is killed.

    output/checkpoints/iter_000500/     manifest.json and the files of one checkpoint
    output/best/                        the same, of the best evaluation so far

A checkpoint is written into a hidden folder beside its place, flushed to the disk, described by a
manifest (size and sha256 of each file) and renamed; one that is read is checked against its
manifest. Where a folder must take the place of another, the old one is set aside by a rename first
and removed last: a kill between the two renames leaves it set aside and complete, every reader here
finds it there, and the next start puts it back.

Of several processes only the first writes; all may read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.checkpoint_files import (
    Checkpoint,
    Writer,
    fill_folder,
    folder_bytes,
    read_folder,
)
from common.errors import CheckpointError, InputError
from common.folder_swap import in_place, new_part, put, remove, remove_aside, shown_name, tidy

__all__ = ["Checkpoint", "CheckpointStore", "Writer"]

SPARE_BYTES = 1 << 20
"""Room wanted beside a checkpoint: for the manifest and the log."""
CHECKPOINTS, BEST, SUPERSEDED = "checkpoints", "best", "superseded_"
_NAME = re.compile(r"iter_(\d{6,})")

_logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one training.

    Building one touches no file. The process that writes calls ``check_writable`` at its start.

    Args:
        folder: output folder of the training; ``checkpoints/`` and ``best/`` lie inside.
        keep: checkpoints kept, the newest; 1 at least.

    Raises:
        ValueError: keep is less than 1.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected 1 or more checkpoints to be kept")
        self.folder, self.keep = folder, keep
        self.warnings: list[str] = []
        """Everything that was warned of so far; also logged."""

    def check_writable(
        self, *, expected_bytes: int | None = None, saves: int = 1, best_bytes: int = 0
    ) -> None:
        """Make the folders, remove what killed runs left, require room for what is to come.

        A new checkpoint is written before the oldest is removed, and a new ``best/`` before the old
        one: there are ``keep`` + 1 checkpoints and two of the best for a moment.

        Not to be called while another run writes into the same folder.

        Args:
            expected_bytes: estimated size of a checkpoint; None: that of the newest one.
            saves: checkpoints that the run will write.
            best_bytes: estimated size of ``best/``; 0: the run will write none.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is too full.
        """
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, self._checkpoints):
                tidy(folder)
                # permission bits do not tell of a read-only or full file system
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"writable")
                    probe.flush()
                    os.fsync(probe.fileno())
        except OSError as error:
            raise self._cannot(f"write checkpoints into {self.folder}", error) from None
        count = max(1, min(saves, self.keep + 1 - len(self._found())))
        copies = 1 if in_place(self.folder / BEST) is not None else 2
        self._require_room(expected_bytes, count=count, more=copies * best_bytes)

    def is_used(self) -> bool:
        """Tell whether a training has been saved here, whatever is left of it."""
        if in_place(self.folder / BEST) is not None:
            return True
        if not self._checkpoints.is_dir():
            return False
        saved = (shown_name(path) for path in self._checkpoints.iterdir())
        return any(name.startswith(("iter_", SUPERSEDED)) for name in saved)

    def holds(self, folder: Path) -> bool:
        """Tell whether a checkpoint's folder is one of this training's."""
        return folder.resolve().parent == self._checkpoints.resolve()

    def set_best_aside(self, iteration: int) -> Path | None:
        """Rename ``best/`` to ``superseded_best_...``; return its new path, None if there is none.

        Args:
            iteration: from which the training goes on without it.

        Raises:
            CheckpointError: it cannot be renamed.
        """
        folder = in_place(self.folder / BEST)
        if folder is None:
            return None
        target = _free_name(self.folder / f"{SUPERSEDED}{BEST}_{iteration:06d}")
        try:
            folder.rename(target)
        except OSError as error:
            raise self._cannot(f"rename {folder}", error) from None
        return target

    def folder_of(self, iteration: int) -> Path:
        """Return where save puts the checkpoint of an iteration."""
        return self._checkpoints / f"iter_{iteration:06d}"

    def save(
        self,
        iteration: int,
        files: Mapping[str, Writer],
        *,
        meta: Mapping[str, Any],
        expected_bytes: int | None = None,
    ) -> Path:
        """Write a checkpoint and then remove the oldest ones beyond ``keep``.

        A checkpoint of the same iteration is replaced. Those of later iterations belong to a run
        that went another way from here: they are renamed to ``superseded_iter_...``, not removed.

        Args:
            iteration: iterations done.
            files: file name -> what writes it; called in order, with a path in the new folder.
            meta: what JSON can hold: epoch, configuration digest, commit, ...
            expected_bytes: estimated size; None: that of the newest checkpoint.

        Returns:
            The folder of the new checkpoint.

        Raises:
            CheckpointError: it cannot be written (full disk, permissions); what was there is
                whole, and the message names the last good checkpoint.
        """
        target = self.folder_of(iteration)
        self._require_room(expected_bytes)
        self._write(target, iteration, files, meta=meta)
        return target

    def save_best(
        self,
        iteration: int,
        files: Mapping[str, Writer],
        *,
        miou: float,
        meta: Mapping[str, Any],
        expected_bytes: int | None = None,
    ) -> Path:
        """Replace ``best/``; ``miou`` (0..1) is added to the meta. Otherwise like ``save``.

        A kill at any moment leaves the old or the new one for ``best()`` to find.
        """
        self._require_room(expected_bytes)
        target = self.folder / BEST
        self._write(target, iteration, files, meta={**meta, "miou": miou})
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None when there is none at all.

        A damaged newer one is passed over with a warning: logged, and in ``warnings`` here and of
        the checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged. (To start from the
                beginning then would be a silent loss.)
        """
        passed: list[str] = []
        found = self._found()
        for iteration in sorted(found, reverse=True):
            try:
                checkpoint = read_folder(found[iteration])
            except CheckpointError as error:
                passed.append(f"passed over a checkpoint: {error}")
                self._warn(passed[-1])
            else:
                return replace(checkpoint, warnings=tuple(passed))
        if passed:
            raise CheckpointError(
                f"{self._checkpoints}: all {len(passed)} checkpoints are damaged; move the folder "
                "away to start from the beginning\n" + "\n".join(passed)
            )
        return None

    def best(self) -> Checkpoint | None:
        """Return the checkpoint in ``best/``, or None when there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        folder = in_place(self.folder / BEST)
        return read_folder(folder) if folder is not None else None

    def iterations(self) -> list[int]:
        """Return the iterations of which a checkpoint is there, ascending, not checked."""
        return sorted(self._found())

    def load(self, path: Path) -> Checkpoint:
        """Return the checkpoint in a folder, for ``--resume_model PATH``.

        Raises:
            CheckpointError: listing everything that is wrong with it, and what is there instead.
        """
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise CheckpointError(
                f"{path}: {what}; expected the folder of a checkpoint{self._choices()}"
            )
        try:
            return read_folder(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{self._choices()}") from None

    @property
    def _checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def _found(self) -> dict[int, Path]:
        """Iteration -> folder; one that was set aside counts while nothing has its place."""
        found: dict[int, Path] = {}
        try:
            folders = sorted(path for path in self._checkpoints.iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return found
        except OSError as error:
            raise CheckpointError(
                f"{self._checkpoints}: cannot be read ({error.strerror})"
            ) from None
        for folder in folders:
            # ".aside." sorts before "iter_", so the one in place wins
            if match := _NAME.fullmatch(shown_name(folder)):
                found[int(match[1])] = folder
        return found

    def _choices(self) -> str:
        names = [self._found()[iteration].name for iteration in self.iterations()]
        if not names:
            return f"; {self._checkpoints} holds no checkpoint"
        return f"; {self._checkpoints} holds {', '.join(names)}; auto takes the newest whole one"

    def _surplus(self, iteration: int) -> list[Path]:
        found = self._found()
        earlier = sorted((n for n in found if n < iteration), reverse=True)
        return [found[n] for n in earlier[self.keep - 1 :]]

    def _write(
        self, target: Path, iteration: int, files: Mapping[str, Writer], *, meta: Mapping[str, Any]
    ) -> None:
        part: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = new_part(target)
            fill_folder(part, iteration, files, meta=meta)
            if target.parent == self._checkpoints:
                self._supersede(iteration)
            put(part, target)
        except (OSError, InputError) as error:
            raise self._cannot(f"write {target}", error) from None
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
        try:
            remove_aside(target)
            if target.parent == self._checkpoints:
                for folder in self._surplus(iteration):
                    remove(folder)
        except OSError as error:
            # the new one is complete; the next save tries again
            self._warn(f"{target.parent}: an old checkpoint cannot be removed ({error})")

    def _supersede(self, iteration: int) -> None:
        for later, folder in self._found().items():
            if later <= iteration:
                continue
            name = SUPERSEDED + shown_name(folder)
            target = _free_name(folder.with_name(name))
            folder.rename(target)
            self._warn(
                f"{folder} is past iteration {iteration}, from where this run goes another "
                f"way: renamed to {target.name}"
            )

    def _require_room(self, expected_bytes: int | None, *, count: int = 1, more: int = 0) -> None:
        """Require room for ``count`` checkpoints and ``more`` bytes."""
        try:
            found = self._found()
            if expected_bytes is None and found:
                expected_bytes = folder_bytes(found[max(found)])
            place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise self._cannot(f"write checkpoints into {self.folder}", error) from None
        wanted = count * (expected_bytes or 0) + more + SPARE_BYTES
        if free < wanted:
            what = "a checkpoint takes" if count == 1 else f"{count} checkpoints take"
            if more:
                what = f"{count} checkpoint(s) and best/, old and new, take"
            raise CheckpointError(
                f"{self.folder}: {free / 2**20:.0f} MiB are free; {what} "
                f"{wanted / 2**20:.0f} MiB; free some space, lower --keep_checkpoint_max or choose "
                "another --save_dir. " + self._last_good()
            )

    def _cannot(self, what: str, error: OSError | InputError) -> CheckpointError:
        reason = str(error)
        if isinstance(error, OSError):
            where = f", {error.filename}" if error.filename else ""
            reason = f"{error.strerror or error}{where}"
        return CheckpointError(
            f"cannot {what}: {reason}. Mend that or choose another --save_dir. {self._last_good()}"
        )

    def _last_good(self) -> str:
        try:
            checkpoint = self.latest()
        except CheckpointError:
            return "No checkpoint before it is whole."
        if checkpoint is None:
            return "There is no checkpoint before it."
        return f"The last good checkpoint is whole: {checkpoint.folder}"

    def _warn(self, text: str) -> None:
        if text in self.warnings:
            return
        self.warnings.append(text)
        _logger.warning("%s", text)


def _free_name(path: Path) -> Path:
    """Return the path, or with the first number behind it under which there is nothing."""
    paths = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 1000))]
    return next(candidate for candidate in paths if not candidate.exists())
