"""Keeping freed memory in the process: for loops that make large arrays again and again.

By default glibc hands large freed blocks back to the kernel, which fills each page with zeros when
it is needed again. For a 480 x 360 sample that is more than all of the augmentation's arithmetic.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of mallopt's parameters in glibc's malloc.h."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees; tell whether its C library can (only glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_MAX, 0))
