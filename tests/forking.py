"""Work done in a forked child: what changes or ends a whole process."""

import os
import sys
from collections.abc import Callable


def in_child(work: Callable[[], None]) -> int:
    """Run work in a forked child; return its exit code: 0, KILLED, or 1 with its traceback."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # not sys.exit: the child must not run what pytest has set up for its end
        os._exit(code)
