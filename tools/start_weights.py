"""Write the weights that a training starts with, so that another can start with the same.

    python tools/start_weights.py --config configs/bisenetv1_camvid_cpu.yml --out start.safetensors
    python tools/train.py --framework torch --config ... --weights start.safetensors

The two frameworks draw different initial weights from one seed. A comparison of their trainings
(tools/compare_trainings.py) needs the same. Takes the options of tools/train.py.

Exit codes: 0 done, 2 usage, configuration or weights that cannot be used.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.train_settings import parse_settings
from common.weights import write_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Write the weights that a training starts with.",
        epilog="All other options are those of tools/train.py.",
    )
    parser.add_argument("--out", type=Path, required=True, help="The .safetensors to write.")
    given, others = parser.parse_known_args(arguments)
    try:
        settings = parse_settings(others)
        # the one framework of this process, and only now: usage errors need none
        trainer = importlib.import_module(f"for_{settings.framework}.trainer").Trainer(
            settings.config, device=settings.device
        )
        model = settings.config.model.name
        write_weights(given.out, trainer.evaluated_arrays(), model=model)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{trainer.start.text()}\nwritten: {given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
