"""Reviews the rows of the step logs: bounds not loosened, nothing vacuous, none left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.catalogue import FAMILY_OVERRIDES
from pipeline.chaos import BAND, BAND_FACTOR
from pipeline.judge import ZERO_FLOAT32, ZERO_FLOAT64, zero_rule
from pipeline.report import rule_lines
from pipeline.review_evidence import Check, Evidence, judged
from pipeline.rounding import CROSS_FACTOR, ULP
from pipeline.step_logs import LogRow, Section, count_kinds, kind_of
from pipeline.steps import SIDES, Step, step_named
from pipeline.verdicts import bound_for

PRINTED = 0.006
"""Relative error of a number printed with three digits."""
FLOOR_PRINTED = 0.06
"""The same with two digits."""

PARAMETER_KINDS = (
    *("grad", "rounding", "step1/param", "step5/param", "step1/momentum", "step5/momentum"),
    *("moved/step1", "moved/step5"),
)
"""Kinds of the steps backward and optimizer whose tensors are named as parameters are."""
KINDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("data", "float32"): ("train", "train_padded", "train_loader", "val", "val_loader"),
    ("forward", "float64"): (
        *(f"{mode}/{what}" for mode in ("eval", "train") for what in ("layer", "head")),
        *(f"odd{size}/{what}" for size in ("33x65", "72x104") for what in ("head", "prediction")),
    ),
    ("forward", "float32"): (
        *(f"{mode}/{what}" for mode in ("eval", "train") for what in ("layer", "head")),
        *(f"odd{size}/head" for size in ("33x65", "72x104")),
    ),
    ("metric", "float64"): ("all_classes", "absent_classes", "beyond_2_24"),
    **{
        ("loss", dtype): tuple(
            f"{case}/{what}"
            for case in ("mostly_hard", "mostly_easy", "heavy_void", "one_image_void", "all_void")
            for what in ("label", "loss", "grad")
        )
        for dtype in ("float64", "float32")
    },
    ("backward", "float64"): ("label", "loss", "layer", "grad", "buffer"),
    ("backward", "float32"): ("label", "loss", "layer", "grad", "buffer", "rounding"),
    ("lr_schedule", "float64"): ("lr", "options", "group"),
    **{
        ("optimizer", dtype): tuple(
            f"{first}/{second}"
            for first, second in (
                *((f"step{n}", what) for n in (1, 5) for what in ("param", "momentum")),
                *(("moved", f"step{n}") for n in (1, 5)),
            )
        )
        for dtype in ("float64", "float32")
    },
    ("training", "float64"): (
        *("loss", "lr", "order", "state", "momentum", "moved", "first", "val"),
    ),
    ("training", "float32"): ("loss", "lr", "order", "state", "momentum", "moved", "first"),
}
"""What each step must have compared, as kinds of tensors (step_logs.kind_of)."""

TRAINABLE: Mapping[str, int] = {
    "bisenetv1": 114,
    "bisenetv1_2020": 110,
    "bisenetv1_fp16_2020": 110,
    "bisenetv1_diss": 98,
    "bisenetv1_diss_bn": 98,
    "bisenetv1_2019": 99,
    "bisenetv2": 197,
    "bisenetv2_2020": 185,
    "stdc1": 148,
    "stdc2": 220,
    "bisestdc": 187,
    "bisestdc2": 187,
}
"""Trainable tensors of each network, as the published checkpoints have them (a test counts)."""


def value_checks(evidence: Evidence) -> Iterator[Check]:
    """Yield the checks of the bounds, and of group not vacuous."""
    sections = list(evidence.sections.values())
    bounds = [text for section in sections for text in bound_problems(section)]
    rows = sum(len(section.rows) for section in sections)
    yield judged("consistent", "bounds", bounds, f"of the present table, in {rows} rows")
    vacuous = [text for section in sections for text in vacuous_problems(section)]
    total = sum(section.comparisons for section in sections)
    yield judged("not vacuous", "comparisons", vacuous, f"{total} comparisons")
    yield _parameter_check(evidence)
    yield judged("consistent", "names", _name_problems(evidence), "the same in float64 and float32")
    yield judged(
        "not vacuous", "sizes", _size_problems(evidence), "of a run over the family, or more"
    )
    yield judged("not vacuous", "records", _record_problems(evidence), "of two processes")


# ---- bounds --------------------------------------------------------------------------------------
def bound_problems(section: Section) -> Iterator[str]:
    """Yield what was judged by another bound than the present table of steps has."""
    step = step_named(section.step)
    where = f"{section.step} {section.dtype}"
    if list(section.rules) != rule_lines(step, section.dtype):
        yield f"{where}: its rules are not those of the present table of steps"
    for row in section.rows:
        if text := _bound_problem(step, section.dtype, row):
            yield f"{where}: {row.key}: {text}"


def _bound_problem(step: Step, dtype: str, row: LogRow) -> str:
    zeros = ZERO_FLOAT32 if dtype == "float32" else ZERO_FLOAT64
    if zero_rule(step, row.key) is not None and row.key.partition("/")[0] != "rounding":
        return _above(row.bound, zeros)
    if dtype != "float32" or "float64" not in step.dtypes:
        return _above(row.bound, bound_for(row.key, step.bounds).relative)
    if row.key.startswith(BAND):
        bands = row.max_rel
        far = f"Paddle is {bands:g} bands from Torch, limit {BAND_FACTOR:g}"
        return "" if bands <= BAND_FACTOR * (1 + PRINTED) else far
    limit = bound_for(row.key, step.rounding).relative
    ratio = row.max_rel if row.key.startswith("rounding/") else row.rounding
    if ratio is not None and not ratio <= limit * (1 + PRINTED):
        return f"Paddle's rounding is {ratio:g} times Torch's, limit {limit:g}"
    if row.key.startswith("rounding/") or not row.bound:
        return ""
    if row.floor is None:
        return f"bound {row.bound:.2e} without a rounding floor"
    return _above(row.bound, CROSS_FACTOR * row.floor * (1 + FLOOR_PRINTED) + 4 * ULP)


def _above(bound: float, allowed: float) -> str:
    if bound <= allowed * (1 + PRINTED):
        return ""
    return f"bound {bound:.2e}, the present table allows {allowed:.2e}"


# ---- vacuous -------------------------------------------------------------------------------------
def vacuous_problems(section: Section) -> Iterator[str]:
    """Yield why a step's log proves nothing, or less than it must."""
    where = f"{section.step} {section.dtype}"
    if not section.comparisons or not section.rows:
        yield f"{where}: nothing was compared"
        return
    if section.tensors != len(section.rows) + section.more:
        yield (
            f"{where}: {section.tensors} tensors in its count, {len(section.rows)} listed and "
            f"{section.more} not listed"
        )
    yield from (f"{where}: {text}" for text in _count_problems(section))
    yield from (f"{where}: {text}" for text in _order_problems(section))
    for row in section.rows:
        if not all(map(math.isfinite, (row.relative, row.max_abs, row.mean_abs, row.max_rel))):
            yield f"{where}: {row.key} is not finite"
        if not row.size:
            yield f"{where}: {row.key} has no element"


def _order_problems(section: Section) -> Iterator[str]:
    """Yield rows that cannot be as they were written: worst first, no mean above its largest."""
    before = math.inf
    bounds = step_named(section.step).bounds
    for row in section.rows:
        share = row.relative / row.bound if row.bound else row.relative
        if section.dtype == "float64" and bound_for(row.key, bounds).by_chance:
            # a draw that passes comes last, whatever it uses of its bound
            share = 0.0
        if share > before * (1 + 2 * PRINTED):
            yield f"{row.key} uses more of its bound than the row before it"
        before = share
        # a row of draws, or of a run's iterations, has the mean of all beside the value of one
        drawn = row.key.startswith(("rounding/", "band/"))
        if not drawn and row.mean_abs > row.max_abs * (1 + 2 * PRINTED):
            yield f"{row.key} has a mean difference above its largest"


def _count_problems(section: Section) -> Iterator[str]:
    """Hold the log's count of tensors by kind against its rows and what the step must have."""
    keys = [row.tensor for row in section.rows]
    if len(set(keys)) != len(keys):
        yield "a tensor is listed twice"
    listed = count_kinds(section.step, keys)
    counted = section.kinds or ({} if section.more else listed)
    if counted:
        if sum(counted.values()) != section.tensors:
            yield f"{sum(counted.values())} tensors by kind, {section.tensors} counted"
        wanted = KINDS.get((section.step, section.dtype), ())
        yield from (f"no {kind} compared" for kind in wanted if not counted.get(kind))
        for kind, count in listed.items():
            exact = not section.more and count != counted.get(kind)
            if exact or count > counted.get(kind, 0):
                yield f"{count} {kind} listed, {counted.get(kind, 0)} counted"


def _parameter_check(evidence: Evidence) -> Check:
    """Hold the numbers of parameters that several steps compared against each other."""
    counts = {key: section.kinds for key, section in evidence.sections.items()}
    for key, section in evidence.sections.items():
        if not section.kinds and not section.more:
            counts[key] = count_kinds(section.step, [row.key for row in section.rows])
    model = str(evidence.summary.get("model"))
    grouped = counts.get(("lr_schedule", "float64"), {}).get("group", 0)
    published = TRAINABLE.get(model)
    problems: list[str] = []
    if published is not None and grouped != published:
        problems.append(f"{grouped} parameters in groups, {model} has {published}")
    for dtype in ("float64", "float32"):
        for kind in ("step1/param", "step5/param"):
            found = counts.get(("optimizer", dtype), {}).get(kind)
            if found is not None and found != grouped:
                problems.append(f"optimizer {dtype}: {found} of {grouped} parameters in {kind}")
        gradients = counts.get(("backward", dtype), {})
        if gradients and not 0 < gradients.get("grad", 0) <= grouped:
            problems.append(f"backward {dtype}: {gradients.get('grad', 0)} gradients of {grouped}")
    problems += _without_gradient(evidence)
    known = f"{grouped} trainable tensors"
    ok = known + (", as published" if published else f", as counted in itself: {model} is new here")
    return judged("not vacuous", "parameters", problems, ok)


def _name_problems(evidence: Evidence) -> Iterator[str]:
    """Compare the tensors' names between the dtypes of a step, and of parameters between steps."""
    named: dict[tuple[str, str], dict[str, set[str]]] = {}
    for key, section in evidence.sections.items():
        for row in section.rows if not section.more else ():
            kind = kind_of(section.step, row.key)
            name = row.tensor.removeprefix(f"{kind}/")
            named.setdefault(key, {}).setdefault(kind, set()).add(name)
    groups = named.get(("lr_schedule", "float64"), {}).get("group", set[str]())
    for (step, dtype), kinds in named.items():
        other = named.get((step, "float64"), {})
        for kind, names in kinds.items():
            for name in sorted(names ^ other.get(kind, names)):
                yield f"{step}: {kind}/{name} is of one dtype only"
            if groups and step in ("optimizer", "backward") and kind in PARAMETER_KINDS:
                for name in sorted(names - groups):
                    yield f"{step} {dtype}: {kind}/{name} is no parameter of a group"


def _size_problems(evidence: Evidence) -> Iterator[str]:
    """Yield what was made smaller than a run over the family has it."""
    sizes: Any = evidence.summary.get("verify")
    own: Mapping[str, Any] = sizes if isinstance(sizes, dict) else {}
    for override in FAMILY_OVERRIDES:
        key, _, text = override.removeprefix("verify.").partition("=")
        least, found = yaml.safe_load(text), own.get(key)
        if key != "train_warmup_iters" and not _as_large(found, least):
            yield f"verify.{key} is {found}, at least {least}"


def _as_large(found: Any, least: Any) -> bool:
    """Compare two numbers, or two sizes by their area."""
    pair = [value if isinstance(value, list) else [value] for value in (found, least)]
    numbers = [[n for n in value if isinstance(n, int)] for value in pair]
    return all(numbers) and math.prod(numbers[0]) >= math.prod(numbers[1])


def _without_gradient(evidence: Evidence) -> Iterator[str]:
    """Yield parameters of layers that ran forward and have no gradient, where all are listed."""
    wanted = (("forward", "float64"), ("backward", "float64"), ("lr_schedule", "float64"))
    sections = [evidence.sections.get(key) for key in wanted]
    if any(section is None or section.more for section in sections):
        return
    names = [[row.tensor for row in section.rows] for section in sections if section]
    ran = {name.removeprefix("train/layer/").partition("#")[0] for name in names[0]}
    graded = {name.removeprefix("grad/") for name in names[1] if name.startswith("grad/")}
    for key in names[2]:
        name = key.removeprefix("group/")
        if name != key and name.rpartition(".")[0] in ran and name not in graded:
            yield f"{name}: its layer ran and no gradient of it was compared"


def _record_problems(evidence: Evidence) -> Iterator[str]:
    alike = ("forward", "backward", "training")
    for section in evidence.sections.values():
        where = f"{section.step} {section.dtype}"
        digests = [section.records.get(side, "") for side in SIDES]
        if any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
            yield f"{where}: a record's digest is no sha256"
        elif digests[0] == digests[1] and section.step in alike:
            # two libraries do not round a whole network alike to the last bit
            yield f"{where}: both records are the same bytes: one side against itself"
        for side, loaded in section.frameworks.items():
            if loaded != side:
                yield f"{where}: the {side} process had {loaded} loaded"
    versions: Any = evidence.summary.get("versions")
    for side, other in (SIDES, SIDES[::-1]) if isinstance(versions, dict) else ():
        names = versions.get(side, {})
        if side not in names or other in names:
            yield f"summary.json: versions of the {side} side are {names or 'missing'}"
