"""The path of a user, from Cityscapes as it is downloaded to a figure, on small drawn scenes.

    python .ci/train_path.py                       # Paddle, then the Torch twin; `make train_path`
    python .ci/train_path.py --framework torch --work /tmp/path

prepare, check-data, verify, a training by the launcher with two processes that passes the parity
gate, the same killed by SIGKILL and resumed, its evaluation by the launcher and by one process.
What must be equal is compared to the last bit. Exit codes: 0 all held, 1 what did not is told.

The commands run in a folder of their own, removed at the end if nothing failed and --work did not
name it: logs/ and output/ of the checkout are left alone. There is no framework in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from train_path_parts import (
    ROOT,
    Commands,
    Launched,
    PathError,
    eval_differences,
    file_differences,
    log_differences,
    log_rows,
    only_once,
    require,
    trainer_differences,
)

from common.images import read_label
from common.prepare.cityscapes import label_from_ids
from fake_data.scenes import generate

CONFIG = Path(__file__).resolve().with_suffix(".yml")
BIN = Path(sys.executable).parent
TRAIN, VAL, SIZE_HW = 7, 3, (96, 192)
"""Scenes, in three cities; neither number is a multiple of the processes."""
ITERATIONS, SAVE_INTERVAL = 12, 4
KILLED_AFTER = 6
"""Killed when this iteration is in the log: between two checkpoints, so some are done again."""
FRAMEWORKS = ("paddle", "torch")
LAUNCHERS = {
    "paddle": ("-m", "paddle.distributed.launch", "--nproc_per_node", "2"),
    # a port of its own: 29500, the usual one, may be another job's
    "torch": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
}
LAYOUT = {
    "paddle": (),
    # that of `bisenet eval` on a CPU: kernels of another one round otherwise, and where two classes
    # are nearly as likely a pixel would be of the other
    "torch": ("--set", "train.channels_last=true"),
}
DATA = Path("data/cityscapes")
"""data.root of the configuration; seen from the work folder, as all paths below."""


def main() -> int:
    """Walk the path; return the exit code."""
    parser = argparse.ArgumentParser(description="The whole path of a user, on drawn scenes.")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="only this one; default: both")
    parser.add_argument("--work", type=Path, help="new folder to work in, which is kept")
    chosen = parser.parse_args()
    started = time.monotonic()
    if chosen.work is not None:
        chosen.work.mkdir(parents=True)
    work = (chosen.work or Path(tempfile.mkdtemp(prefix="train_path."))).resolve()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - started:6.1f} s] {text}\n")
        sys.stdout.flush()

    say(f"work folder {work}")
    try:
        commands = Commands(work, say=say)
        prepare(commands)
        verify(commands)
        for framework in [chosen.framework] if chosen.framework else FRAMEWORKS:
            Training(commands, framework).walk()
    except PathError as error:
        say(f"FAILED: {error}\nall output is kept in {work}")
        return 1
    if chosen.work is None:
        shutil.rmtree(work)
    used = os.times()
    say(f"PASSED with {used.children_user + used.children_system:.0f} s of processor time")
    return 0


def prepare(commands: Commands) -> None:
    """Draw the release, make labels and lists of it, check the data."""
    root = commands.work / DATA
    generate(root, train=TRAIN, val=VAL, size_hw=SIZE_HW)
    cities = sorted(folder.name for folder in root.glob("leftImg8bit/*/*"))
    commands.say(f"drawn: {TRAIN} + {VAL} scenes in {', '.join(cities)}")

    commands.run("prepare", [BIN / "bisenet", "prepare", "cityscapes", DATA, "--workers", "2"])
    report = json.loads((root / "prepare.json").read_text())
    lists = {"train.txt": TRAIN, "val.txt": VAL, "trainval.txt": TRAIN + VAL}
    require((report["written"], report["lists"]) == (TRAIN + VAL, lists), f"prepare.json: {report}")
    wrong = [
        str(path.relative_to(root))
        for path in root.glob("gtFine/*/*/*_labelTrainIds.png")
        if not np.array_equal(
            read_label(path),
            label_from_ids(path.with_name(path.name.replace("TrainIds", "Ids"))),
        )
    ]
    require(not wrong, f"drawn from polygons, but not what the labelIds say: {', '.join(wrong)}")

    commands.run("check-data", [BIN / "bisenet", "check-data", CONFIG, "--workers", "2"])
    check = json.loads((commands.work / "output/check/train_path/check.json").read_text())
    samples = {split: one["without_problem"] for split, one in check["splits"].items()}
    require(check["passed"] and samples == {"train": TRAIN, "val": VAL}, f"check.json: {samples}")


def verify(commands: Commands) -> None:
    """Show that a training without evidence is refused, and make the evidence."""
    words = [sys.executable, ROOT / "tools/train.py", "--config", CONFIG, "--device", "cpu"]
    text = commands.run("unverified training", words, expected=2)
    require("bisenet verify" in text, f"the refusal names no command:\n{text}")
    commands.run("verify", [BIN / "bisenet", "verify", "--config", CONFIG])


class Training:
    """The trainings and evaluations of one framework.

    Args:
        commands: where and how they run.
        framework: paddle or torch.
    """

    def __init__(self, commands: Commands, framework: str) -> None:
        self.commands, self.framework = commands, framework
        self.folder = Path("output") / framework
        self.whole, self.broken = (commands.work / self.folder / n for n in ("whole", "broken"))

    def walk(self) -> None:
        """Train, kill and resume, evaluate, compare."""
        self.run("training", self.train_words(self.whole))
        self.check_whole()
        self.kill(KILLED_AFTER)
        self.run("resumed", [*self.train_words(self.broken), "--resume_model", "auto"])
        self.check_resumed()
        self.check_evaluations()

    def launched(self, script: str) -> list[str | Path]:
        """Return the start of a command by the framework's launcher, with two processes."""
        start = [sys.executable, *LAUNCHERS[self.framework], ROOT / "tools" / script]
        return [*start, "--framework", self.framework, "--device", "cpu", "--config", CONFIG]

    def train_words(self, out: Path) -> list[str | Path]:
        """Return the command of a training."""
        numbers = {"iters": ITERATIONS, "save_interval": SAVE_INTERVAL, "log_iters": 1}
        words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        saved = ["--save_dir", out.relative_to(self.commands.work), "--do_eval", "--use_vdl"]
        return [*self.launched("train.py"), *words, *saved, *LAYOUT[self.framework]]

    def run(self, title: str, words: list[str | Path]) -> None:
        """Run a command to its end."""
        self.commands.run(f"{self.framework} {title}", words)

    def check_whole(self) -> None:
        """Look at what the uninterrupted training left: by two processes, past the gate."""
        rows = log_rows(self.whole)
        evidence = self.commands.work / "logs" / CONFIG.stem / "summary.json"
        digest = hashlib.sha256(evidence.read_bytes()).hexdigest()
        told = {"parity": digest, "world_size": 2}
        found = {key: rows[0].get(key) for key in told}
        require(found == told, f"the log's head says {found}; expected {told}")
        only_once(rows, "train", list(range(1, ITERATIONS + 1)))
        only_once(rows, "eval", list(range(SAVE_INTERVAL, ITERATIONS + 1, SAVE_INTERVAL)))
        shown = list((self.whole / "vdl").glob("*.log"))
        require(any(path.stat().st_size for path in shown), "--use_vdl wrote nothing")
        last = [row for row in rows if row["kind"] == "eval"][-1]
        self.commands.say(f"  past the parity gate ({digest[:12]}), mIoU {last['miou']:.6f}")

    def kill(self, iteration: int) -> None:
        """Start the training again, and kill all its processes once the iteration is done."""

        def reached() -> bool:
            return any(
                row["kind"] == "train" and row["iteration"] >= iteration
                for row in log_rows(self.broken)
            )

        with Launched(
            self.commands, f"{self.framework} killed", self.train_words(self.broken)
        ) as job:
            job.wait_for(reached)
            killed = job.kill()
        done = [row["iteration"] for row in log_rows(self.broken) if row["kind"] == "train"]
        require(not self.checkpoint(self.broken).exists(), "it was done before it was killed")
        self.commands.say(f"  {killed} processes killed after iteration {done[-1]}")

    def checkpoint(self, out: Path) -> Path:
        """Return the folder of the last checkpoint."""
        return out / "checkpoints" / f"iter_{ITERATIONS:06d}"

    def check_resumed(self) -> None:
        """Compare the run that was killed and resumed with the one that was not."""
        rows = log_rows(self.broken)
        starts = [row["iteration"] for row in rows if row["kind"] == "header"]
        require(
            len(starts) == 2 and 0 < starts[1] < ITERATIONS,
            f"started at iterations {starts}; expected 0 and that of a checkpoint",
        )
        found = log_differences(log_rows(self.whole), rows)
        for name in ("weights.safetensors", "momentum.safetensors"):
            pair = [self.checkpoint(out) / name for out in (self.whole, self.broken)]
            found += file_differences(*pair)
        found += file_differences(
            *(out / "best/weights.safetensors" for out in (self.whole, self.broken))
        )
        self.equal(found, f"resumed at iteration {starts[1]}: weights, momentum, best, log")

    def check_evaluations(self) -> None:
        """Evaluate the resumed training's weights by two processes and by one."""
        weights = ["--weights", self.checkpoint(self.broken) / "weights.safetensors"]
        two, one = self.folder / "eval_two", self.folder / "eval_one"
        self.run("evaluation by two", [*self.launched("eval.py"), *weights, "--out", two])
        alone = [BIN / "bisenet", "eval", "--side", self.framework, "--config", CONFIG]
        self.run("evaluation by one", [*alone, *weights, "--out", one])
        results: list[dict[str, Any]] = [
            json.loads((self.commands.work / out / "eval.json").read_text()) for out in (two, one)
        ]
        processes = [result["processes"] for result in results]
        require(processes == [2, 1], f"evaluated by {processes} processes; expected 2 and 1")
        predicted = np.array(results[1]["confusion_matrix"]["counts"]).any(axis=0).sum()
        require(predicted > 1, "every pixel is of one class: equal scores would show nothing")
        self.equal(
            eval_differences(*results), f"two processes and one, {predicted} classes predicted"
        )
        last = [row for row in log_rows(self.whole) if row["kind"] == "eval"][-1]
        self.equal(trainer_differences(last, results[1]), "the trainer's last evaluation")

    def equal(self, differences: list[str], what: str) -> None:
        """Require that there are no differences."""
        require(not differences, f"{self.framework}, {what}:\n" + "\n".join(differences[:20]))
        self.commands.say(f"  equal: {what}")


if __name__ == "__main__":
    sys.exit(main())
