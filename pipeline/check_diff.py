"""One step at a time, for people used to the step folders of other reproductions.

    python pipeline/check_diff.py --step loss --config configs/bisenetv1_cityscapes.yml

Runs ``bisenet verify --steps loss`` and prints the step's log. Exit codes as there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run one step in a folder of its own and print its log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", required=True, help="name of the step, for example loss")
    parser.add_argument("--config", required=True, type=Path, help="configuration file (YAML)")
    parser.add_argument("--data", type=Path, help="folder of real data")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["verify", "--config", str(arguments.config), "--steps", arguments.step]
        words += ["--out", folder, "--keep-going"]
        if arguments.data:
            words += ["--data", str(arguments.data)]
        code = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], check=False
        ).returncode
        log = Path(folder) / f"{arguments.step}_diff.log"
        if log.is_file():
            print(log.read_text(encoding="utf-8"), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
