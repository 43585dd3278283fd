"""What a process of a training could not read, in a form that all processes can be told.

A sample that cannot be read, or a loader that fails, happens to one process; all of them end for
it, and each says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import DataError, InputError, SampleError
from common.loader_watch import LoaderHungError, batches_within, end_process

LOADER_ERRORS = (RuntimeError, SystemError, OSError, EOFError)
"""What both frameworks raise where a loader process has ended, or batches come no more."""
MAX_TEXT = 2000
"""Characters of a message that travel between processes."""


@dataclass(frozen=True)
class ReadFailure:
    """Why one process has no batch."""

    event: str
    """Kind of its line in the log: data_failed (the data are wrong) or loader_failed."""
    message: str
    sample: str = ""
    """Name of the sample, where one is the cause."""
    file: str = ""
    """The file of it that is wrong, where that is known."""
    rank: int = 0

    @staticmethod
    def of(error: BaseException, *, rank: int, wanted: str) -> ReadFailure:
        """Return what an exception tells.

        Args:
            error: caught while a batch was waited for.
            rank: of this process.
            wanted: what the batch was for, as "iteration 5".
        """
        if isinstance(error, SampleError):
            return ReadFailure("data_failed", str(error), error.sample, error.file, rank)
        if isinstance(error, InputError):
            return ReadFailure("data_failed", str(error), rank=rank)
        text = f"no batch for {wanted}: {str(error).strip() or type(error).__name__}"
        if not isinstance(error, LoaderHungError):
            text += (
                "\nif a loader process was killed, the memory may be short: lower --num_workers, "
                "then go on with --resume_model auto"
            )
        return ReadFailure("loader_failed", text, rank=rank)

    def as_text(self) -> str:
        """Return it in lines; the message, which may be cut, is last."""
        head = (self.event, self.sample, self.file, str(self.rank))
        return "\n".join([*(part.replace("\n", " ") for part in head), self.message[-MAX_TEXT:]])

    @staticmethod
    def from_text(text: str) -> ReadFailure:
        """Return what as_text has told."""
        event, sample, file, rank, message = text.split("\n", 4)
        return ReadFailure(event, message, sample, file, int(rank))

    def facts(self) -> dict[str, str | int]:
        """Return what its line in the log holds."""
        named = {"sample": self.sample, "file": self.file}
        return {
            **{key: value for key, value in named.items() if value},
            "rank": self.rank,
            "message": self.message,
        }


class CannotReadError(Exception):
    """This process has no batch; the others are yet to be told."""

    def __init__(self, failure: ReadFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Loader(Sized, Protocol):
    """What gives batches: for_*/data.py Batches."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


class Reader:
    """Takes batches from the loaders of one process, each within a time limit.

    Args:
        limit_s: seconds for one batch; 0: no limit.
        rank: of this process.
        on_stuck: called before the process is ended because its main thread hangs in reading; in
            a thread of its own.
        end: ends the process, see loader_watch.batches_within.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        rank: int,
        on_stuck: Callable[[ReadFailure], None],
        end: Callable[[str], None] = end_process,
    ) -> None:
        self.limit_s, self.rank = limit_s, rank
        self._on_stuck, self._end = on_stuck, end

    def batches(self, loader: Loader, *, wanted: Callable[[], str]) -> Iterator[dict[str, Any]]:
        """Yield all batches of a loader.

        Args:
            loader: as many batches as its length are expected.
            wanted: returns what the next batch is for, as "iteration 5".

        Raises:
            CannotReadError: a sample or the loader has failed, or it ends too early: Paddle's does
                when one of its processes was killed.
        """

        def end(message: str) -> None:
            failure = ReadFailure.of(LoaderHungError(message), rank=self.rank, wanted=wanted())
            self._on_stuck(failure)
            self._end(failure.message)

        source = batches_within(loader, self.limit_s, end=end)
        for number in range(len(loader)):
            try:
                batch = next(source)
            except StopIteration as error:
                early = EOFError(f"the loader has ended after {number} of {len(loader)} batches")
                raise self._cannot(early, wanted()) from error
            except (InputError, *LOADER_ERRORS) as error:
                raise self._cannot(error, wanted()) from error
            yield batch

    def _cannot(self, error: Exception, wanted: str) -> CannotReadError:
        return CannotReadError(ReadFailure.of(error, rank=self.rank, wanted=wanted))


class ReadingError(DataError):
    """A process of the training could not read its data; raised by all of them.

    Args:
        failure: of the first rank that has failed.
        rank: of this process.
    """

    def __init__(self, failure: ReadFailure, *, rank: int) -> None:
        self.failure = failure
        other = failure.rank != rank
        super().__init__(
            f"rank {failure.rank} failed to read its data: {failure.message}"
            if other
            else failure.message
        )
