"""The official acceptance list of Paddle's reproduction guide, answered from the logs.

Source: PaddlePaddle/models, docs/lwfx/ArticleReproduction_CV.md and its newer form in
tutorials/article-implementation: the steps of a reproduction, six of them checkpoints with a log
of their own, and what is handed in. An item that these logs cannot answer is "unknown" with the
reason, never ticked. The guide compares float32 by one absolute threshold on the mean difference.
Here the float64 run is held against it, as in the pairs of files; float32's largest is told
beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.reprod import THRESHOLD, WANTED
from pipeline.review_evidence import Check, Evidence, State
from pipeline.review_reprod import FOLDER
from pipeline.step_logs import LogRow, Section
from pipeline.steps import STEPS
from pipeline.verdicts import Verdict

GROUP = "acceptance"
PROGRAMS = ("tools/train.py", "tools/eval.py")
TRAINED = 1.5e-3
"""The guide's limit on the figure of a full training: 0.15 % (0.1 % in its newer form)."""


def acceptance_list(evidence: Evidence, *, root: Path) -> Iterator[Check]:
    """Yield one check per item of the guide, in its order.

    Args:
        evidence: of one configuration.
        root: the tree, for the programs that are handed in.
    """
    yield _by_mean(evidence, "1 forward *", "forward", ("eval/head/",))
    yield _data_item(evidence, "2 validation data *", "val/")
    yield _metric_item(evidence)
    yield _by_mean(evidence, "4 loss *", "loss", ("mostly", "heavy"), also="/loss/")
    yield _passed(evidence, "5 optimiser, rate, decay", ("lr_schedule", "optimizer"))
    yield _backward_item(evidence)
    yield _data_item(evidence, "7 training data", "train/")
    yield _not_shown(
        "8 initialisation",
        "every step starts from the same weights; tests/sides hold it against the reference's rule",
    )
    yield _not_shown(
        "9 full training *",
        f"within {TRAINED:.2%} of the published figure: no training to a figure is in these logs; "
        f"{_short_training(evidence)}",
    )
    yield _not_shown("10 training log", "a training writes its own; docs/training.md")
    yield _not_shown("11 inference", "no step exports a network")
    yield _not_shown("12 several cards", "one process per side; docs/distributed.md has the tests")
    yield _handed_in(evidence)
    found = [name for name in PROGRAMS if (root / name).is_file()]
    yield Check(GROUP, "handed in: programs", _state(len(found) == len(PROGRAMS)), ", ".join(found))


def _state(passed: bool) -> State:
    return "ok" if passed else "no"


def _not_shown(name: str, reason: str) -> Check:
    return Check(GROUP, name, "unknown", f"not shown here: {reason}")


def _is_passed(section: Section | None) -> bool:
    return section is not None and section.verdict == Verdict.PASS.value and bool(section.rows)


def _passed(evidence: Evidence, name: str, steps: Sequence[str]) -> Check:
    wanted = [(step.name, dtype) for step in STEPS if step.name in steps for dtype in step.dtypes]
    failed = [key for key in wanted if not _is_passed(evidence.sections.get(key))]
    told = ", ".join(" ".join(key) for key in failed or wanted)
    return Check(GROUP, name, _state(not failed), f"{'not ' if failed else ''}passed: {told}")


def _by_mean(
    evidence: Evidence, name: str, step: str, prefixes: tuple[str, ...], *, also: str = ""
) -> Check:
    """Judge float64 by the guide's threshold, and tell float32's largest."""
    rows = {
        dtype: _rows(evidence.sections.get((step, dtype)), prefixes, also)
        for dtype in ("float64", "float32")
    }
    if not _is_passed(evidence.sections.get((step, "float64"))):
        return Check(GROUP, name, "no", f"step {step} has not passed")
    if not rows["float64"]:
        text = "these tensors are not among the listed ones: verify this configuration alone"
        return _not_shown(name, text)
    worst = {
        dtype: max(found, key=lambda row: row.mean_abs) for dtype, found in rows.items() if found
    }
    told = [f"{dtype} {row.mean_abs:.1e} at {row.tensor}" for dtype, row in worst.items()]
    passed = worst["float64"].mean_abs <= THRESHOLD
    text = f"largest mean difference {', '.join(told)}; the guide's limit {THRESHOLD:g}"
    return Check(GROUP, name, _state(passed), text)


def _rows(section: Section | None, prefixes: tuple[str, ...], also: str) -> list[LogRow]:
    found = section.rows if section else ()
    return [row for row in found if row.tensor.startswith(prefixes) and also in row.tensor]


def _data_item(evidence: Evidence, name: str, prefix: str) -> Check:
    section = evidence.sections.get(("data", "float32"))
    rows = _rows(section, (prefix,), "")
    loader = _rows(section, (prefix.replace("/", "_loader/"),), "")
    passed = _is_passed(section) and bool(rows) and bool(loader)
    text = f"{len(rows)} tensors of samples, {len(loader)} of the loader, equal"
    return Check(GROUP, name, _state(passed), text if passed else "not compared, or not passed")


def _metric_item(evidence: Evidence) -> Check:
    name = "3 metric *"
    section = evidence.sections.get(("metric", "float64"))
    if not _is_passed(section):
        return Check(GROUP, name, "no", "step metric has not passed")
    if not _rows(section, ("frames/",), ""):
        return _not_shown(
            name,
            "the guide asks for real data; on fixed predictions every count and average is equal. "
            "bisenet verify --data DIR shows it",
        )
    return Check(GROUP, name, "ok", "counts and averages on real frames are equal")


def _backward_item(evidence: Evidence) -> Check:
    name = "6 backward *, over 2 iterations at least"
    keys = (("backward", "float64"), ("training", "float64"))
    failed = [step for step, dtype in keys if not _is_passed(evidence.sections.get((step, dtype)))]
    if failed:
        return Check(GROUP, name, "no", f"not passed: {', '.join(failed)}")
    losses = _rows(evidence.sections.get(keys[1]), ("loss/",), "")
    if not losses:
        return _not_shown(name, "the losses are not among the listed tensors")
    worst = max(losses, key=lambda row: row.mean_abs)
    text = f"every gradient, and the losses of {worst.size} iterations within {worst.mean_abs:.1e}"
    return Check(GROUP, name, _state(worst.size >= 2 and worst.mean_abs <= THRESHOLD), text)


def _short_training(evidence: Evidence) -> str:
    section = evidence.sections.get(("training", "float64"))
    if not _is_passed(section):
        return "the short training has not passed"
    return "of a short training, weights and mIoU agree"


def _handed_in(evidence: Evidence) -> Check:
    """Look for the log of every checkpoint that the guide wants handed in."""
    name = "handed in: logs of the checkpoints"
    names = [f"{pair}_diff.log" for pair, _, _ in WANTED.values()]
    found = [log for log in names if (evidence.folder / FOLDER / log).is_file()]
    if not found:
        return _not_shown(
            name, "bisenet verify --config makes them, a run over the family does not"
        )
    missing = [log for log in names if log not in found]
    text = f"{FOLDER}/ has {len(found)}" + (f", not {', '.join(missing)}" if missing else "")
    return Check(GROUP, name, _state(not missing), text)
