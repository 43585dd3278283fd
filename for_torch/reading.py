"""What one rank cannot read, all ranks learn of, before any of them waits for it in a step."""

from __future__ import annotations

import numpy as np

from common.read_failure import ReadFailure, ReadingError
from for_torch.distributed import all_reduce_array, rank, world_size
from for_torch.not_finite import gather_texts


def agree_on_reading(failure: ReadFailure | None) -> None:
    """Raise on every rank if any rank has failed to read; every rank comes here.

    Args:
        failure: of this rank, or None.

    Raises:
        ReadingError: of the first rank that has failed.
    """
    failed = np.zeros(world_size())
    failed[rank()] = failure is not None
    failed = all_reduce_array(failed)
    if not failed.any():
        return
    texts = gather_texts("" if failure is None else failure.as_text())
    first = int(failed.argmax())
    told = ReadFailure.from_text(texts[first])
    # what has travelled may be cut, this rank's own is whole
    own = failure if first == rank() else None
    raise ReadingError(own or told, rank=rank())
