"""Hold two trainings of one recipe against each other, as Paddle's and its Torch twin's.

    python tools/compare_trainings.py output/paddle output/torch --out curves.png

Prints how far apart their losses are and draws both on one picture. Exit codes: 0 done, 2 usage or
logs that cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.run_comparison import draw_pair, read_pair

LOG = "train_log.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the command line asks; return the exit code."""
    parser = argparse.ArgumentParser(description="Hold two trainings of one recipe side by side.")
    parser.add_argument("first", type=Path, help="Output folder of a training, or its log.")
    parser.add_argument("second", type=Path, help="The other; it may have ended earlier.")
    parser.add_argument("--out", type=Path, help="PNG of both curves.")
    given = parser.parse_args(arguments)
    try:
        pair = read_pair(log_of(given.first), log_of(given.second))
        if given.out is not None:
            draw_pair(pair, given.out)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{pair.names[0]} and {pair.names[1]}, total loss\n")
    for name, value in pair.table():
        sys.stdout.write(f"  {name:44} {value:.3g}\n")
    return 0


def log_of(path: Path) -> Path:
    """Return the log of an output folder, or the path itself."""
    return path / LOG if path.is_dir() else path


if __name__ == "__main__":
    sys.exit(main())
