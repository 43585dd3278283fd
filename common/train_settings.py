"""The command line of a training, the same for both frameworks.

Options that PaddleSeg's users type keep PaddleSeg's names. Those that have a key in the
configuration replace it, so that the resolved configuration beside the checkpoints is all of a run.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from common.config import Config, load_config
from common.errors import ConfigError

Framework = Literal["paddle", "torch"]
Device = Literal["cpu", "gpu"]

AUTO = "auto"
"""Value of --resume_model that takes the newest whole checkpoint of --save_dir, if there is one."""


@dataclass(frozen=True)
class TrainSettings:
    """One training as asked for."""

    config_path: Path
    config: Config
    """With all options applied."""
    framework: Framework = "paddle"
    device: Device = "gpu"
    save_dir: Path = Path("output")
    do_eval: bool = False
    use_vdl: bool = False
    use_tensorboard: bool = False
    resume: str | None = None
    """A checkpoint's folder, AUTO, or None for a new run."""
    skip_parity_check: bool = False
    parity: str | None = None
    """Digest of the parity evidence; None: it was not asked for."""
    command: str = ""


_KEYS: dict[str, tuple[str, type, str]] = {
    "iters": ("schedule.max_iters", int, "Iterations; the decay of the rate ends there, too."),
    "batch_size": ("data.batch_size", int, "Images per process and iteration."),
    "learning_rate": ("optimizer.base_lr", float, "Base learning rate."),
    "num_workers": ("data.workers", int, "Loader processes per process; 0: none."),
    "save_interval": ("train.save_interval", int, "Iterations between two checkpoints."),
    "keep_checkpoint_max": ("train.keep_checkpoint_max", int, "Checkpoints kept, the newest."),
    "log_iters": ("train.log_interval", int, "Iterations between two lines of the log."),
    "seed": ("train.seed", int, "Of initial weights, order, augmentation and dropout."),
    "weights": ("model.weights", str, "A whole network's weights to start from."),
    "backbone_weights": ("model.backbone_weights", str, "A backbone's weights to start from."),
}
"""Option -> key of the configuration, type, help."""


def parse_settings(arguments: Sequence[str]) -> TrainSettings:
    """Return what a command line asks for.

    Args:
        arguments: without the program's name.

    Raises:
        ConfigError: the configuration, or an option that replaces a key of it, is wrong; or a key
            of it has no effect without --do_eval.
        SystemExit: (2) an unknown option, (0) --help.
    """
    words = _parser().parse_args(arguments)
    overrides = [
        f"{key}={value}"
        for option, (key, _, _) in _KEYS.items()
        if (value := getattr(words, option)) is not None
    ]
    if words.precision is not None:
        mixed = f"amp_{words.amp_level.lower()}"
        overrides.append(f"train.precision={'float32' if words.precision == 'fp32' else mixed}")
    # what is written out as a key wins over its short form
    overrides += words.set
    config = load_config(words.config, overrides=overrides)
    _require_evaluation(config, do_eval=words.do_eval)
    return TrainSettings(
        config_path=words.config,
        config=config,
        framework=cast("Framework", words.framework),
        device=cast("Device", words.device),
        save_dir=words.save_dir,
        do_eval=words.do_eval,
        use_vdl=words.use_vdl,
        use_tensorboard=words.use_tensorboard,
        resume=words.resume_model,
        skip_parity_check=words.skip_parity_check,
        command=shlex.join(["tools/train.py", *arguments]),
    )


def _require_evaluation(config: Config, *, do_eval: bool) -> None:
    """Require --do_eval where a key says when to evaluate, or to stop for want of a better mIoU."""
    named = {"patience": config.train.patience, "eval_interval": config.train.eval_interval}
    given = [f"train.{key} is {value}" for key, value in named.items() if value is not None]
    if given and not do_eval:
        raise ConfigError(
            f"{' and '.join(given)}, but nothing is evaluated without --do_eval; add --do_eval, or "
            f"take it back with --set {given[0].split()[0]}=null"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/train.py", description="Train a network of the BiSeNet family."
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="Configuration file (YAML).")
    add("--framework", choices=["paddle", "torch"], default="paddle", help="Default: paddle.")
    add("--device", choices=["cpu", "gpu"], default="gpu", help="Default: gpu.")
    add("--save_dir", type=Path, default=Path("output"), help="Output folder; default: output.")
    add("--do_eval", action="store_true", help="Evaluate at each checkpoint; keep the best.")
    add("--use_vdl", action="store_true", help="Show scalars and pictures in VisualDL.")
    add("--use_tensorboard", action="store_true", help="Show them in TensorBoard.")
    add(
        "--resume_model",
        metavar="PATH|auto",
        help="Checkpoint folder to go on from; auto: the newest whole one in --save_dir, if any.",
    )
    add("--precision", choices=["fp32", "fp16"], help="fp16 is mixed precision.")
    add("--amp_level", choices=["O1", "O2"], default="O1", help="Of --precision fp16; default: O1.")
    for option, (key, kind, text) in _KEYS.items():
        add(f"--{option}", type=kind, help=f"{text} Replaces {key}.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Replace any key of the configuration, as train.ema_decay=0.999; may be repeated.",
    )
    add(
        "--skip_parity_check",
        action="store_true",
        help="Train without passing evidence of bisenet verify.",
    )
    return parser
