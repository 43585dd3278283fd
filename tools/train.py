"""Train a network, in Paddle or in its Torch twin.

    python tools/train.py --config configs/bisenetv2_cityscapes.yml --do_eval --save_dir output
    python -m paddle.distributed.launch --gpus 0,1,2,3 tools/train.py --config ... --use_vdl
    torchrun --nproc_per_node 4 tools/train.py --framework torch --config ...

Exit codes: 0 done, 2 usage, configuration or data, 75 stopped by a signal after saving (go on with
--resume_model auto), 77 the loss is not finite, 76 another process of the job was lost.
docs/training.md has the rest.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from common.cpu_kernels import share_cores, usable_cores
from common.errors import InputError
from common.parity_gate import check_parity
from common.stopping import NOT_FINITE, NotFiniteError
from common.train_settings import TrainSettings, parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line asks; return the exit code."""
    try:
        settings = with_proof(parse_settings(sys.argv[1:] if arguments is None else arguments))
        if settings.framework == "paddle":
            share_cores(os.environ, cores=usable_cores())
        # the one framework of this process, and only now: usage errors need none
        run = importlib.import_module(f"for_{settings.framework}.training_run")
        return int(run.train_command(settings))
    except NotFiniteError as error:
        sys.stderr.write(f"error: {error}\n")
        return NOT_FINITE
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def with_proof(settings: TrainSettings) -> TrainSettings:
    """Return the settings with the digest of the parity evidence, unless that is skipped.

    Raises:
        ParityError: there is none, or it is of other code or another recipe.
    """
    if settings.skip_parity_check:
        return settings
    return replace(settings, parity=check_parity(settings.config_path, settings.config).digest)


if __name__ == "__main__":
    sys.exit(main())
