"""Evaluate weights on a validation set, in Paddle or in Torch.

    python tools/eval.py --config configs/bisenetv1_cityscapes.yml --weights v1.pdparams --mode mscf
    python -m paddle.distributed.launch --gpus 0,1 tools/eval.py --device gpu --config ...
    torchrun --nproc_per_node 2 tools/eval.py --framework torch --config ...

`bisenet eval` is the same with one process. Under a launcher every picture is evaluated by one
process, and the counts of all are added up. Exit codes: 0 done, 2 usage, configuration or data, 76
another process of the job was lost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.errors import InputError
from pipeline.eval_settings import parse_settings
from pipeline.evaluation import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line asks; return the exit code."""
    try:
        # the one framework of this process is imported when the settings are known to be right
        return run(parse_settings(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
