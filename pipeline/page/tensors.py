"""How far every tensor is apart: layers, gradients, buffers; in both dtypes, by rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.evidence import Line
from pipeline.page.charts import Chart, Mark, Point, Series, line_chart
from pipeline.page.html import Markup, paragraph, section
from pipeline.page.parts import figure, figures, share, shown, tensor_table, value
from pipeline.page.source import NOT_RECORDED, Source
from pipeline.steps import BOTH

Tensors = Mapping[str, Mapping[str, Line]]


def layers_section(source: Source) -> Markup:
    """Return the error of every layer, in the order of computation."""
    tensors = source.worst_lines("forward")
    return section(
        "layers",
        "Every layer against the rounding floor",
        *_content(
            tensors,
            source,
            step="forward",
            x_label="tensors in order of computation",
            what="Outputs of the layers",
            intro="Outputs of all layers and heads, in evaluation mode, at sizes that do not "
            "divide by 32 and on a frame, then in training mode. A wrong layer stands above the "
            "bound, and so does what follows it: the first one is to blame.",
        ),
    )


def gradients_section(source: Source) -> Markup:
    """Return the error of every gradient, of layers from the loss back, then of parameters."""
    tensors = _judged_by_draws(source.worst_lines("backward"))
    return section(
        "gradients",
        "Gradients",
        *_content(
            tensors,
            source,
            step="backward",
            x_label="loss, layers from the loss back, parameters",
            what="Gradients",
            intro="Gradients at every layer and of every parameter after one backward pass. In "
            "float32 a ReLU or hard pixel that flips by rounding changes all gradients before "
            "it, so Paddle's own rounding of a parameter's gradient over Torch's is the second "
            "smallest of six draws.",
        ),
    )


def buffers_section(source: Source) -> Markup:
    """Return the error of the BatchNorm buffers."""
    tensors = _with_prefix(source.worst_lines("backward"), ("buffer/",))
    return section(
        "buffers",
        "BatchNorm buffers",
        *_content(
            tensors,
            source,
            step="backward",
            x_label="running means and variances in model order",
            what="Buffers after one step in training mode",
            intro="Running means and variances after one step. A wrong momentum or a biased "
            "variance shows here and nowhere else.",
        ),
    )


def update_section(source: Source) -> Markup:
    """Return the tensors nearest to their bounds of all other steps."""
    parts: list[Markup] = []
    for step in ("data", "metric", "loss", "lr_schedule", "optimizer", "training"):
        tensors = source.worst_lines(step)
        if tensors:
            parts.append(tensor_table(tensors, caption=f"{step}, nearest to their bounds"))
    if not parts:
        parts = [paragraph(NOT_RECORDED)]
    where = "All tensors are in the files <step>_diff.log beside this page."
    return section(
        "others", "Data, metric, loss, schedule, optimizer, training", paragraph(where), *parts
    )


def _judged_by_draws(tensors: Tensors) -> Tensors:
    """Return the gradients; a parameter's ratio is that of its draws, which is what is judged."""
    kept: dict[str, Mapping[str, Line]] = {}
    for key, lines in _with_prefix(tensors, ("loss/", "layer/", "grad/", "rounding/")).items():
        kind, _, name = key.partition("/")
        drawn = tensors.get(f"rounding/{name}", {}).get("float32")
        if kind == "rounding" and f"grad/{name}" in tensors and drawn and drawn.verdict == "PASS":
            continue
        if kind == "grad" and drawn and "float32" in lines:
            lines = {**lines, "float32": lines["float32"]._replace(ratio=drawn.ratio)}
        kept[key] = lines
    return kept


def _with_prefix(tensors: Tensors, prefixes: Sequence[str]) -> Tensors:
    return {key: lines for key, lines in tensors.items() if key.startswith(tuple(prefixes))}


def _content(
    tensors: Tensors, source: Source, *, step: str, x_label: str, what: str, intro: str
) -> list[Markup]:
    if not tensors:
        ran = any(result["step"] == step for result in source.results)
        text = NOT_RECORDED if source.evidence is None or ran else f"The step {step} was not run."
        return [paragraph(text)]
    charts = [_chart(tensors, dtype, what, x_label) for dtype in BOTH]
    left = source.evidence.left_out.get(step, 0) if source.evidence else 0
    more = (
        f"{left} more tensors of the step pass and are not drawn; the log has them." if left else ""
    )
    return [
        paragraph(intro),
        figures([one for one in charts if one], tensor_table(tensors, caption=what)),
        *([paragraph(more, class_="muted")] if more else []),
    ]


def _chart(tensors: Tensors, dtype: str, what: str, x_label: str) -> Markup | None:
    lines = [
        (number, key, found[dtype])
        for number, (key, found) in enumerate(tensors.items())
        if dtype in found
    ]
    if not lines:
        return None
    failing = [one for one in lines if one[2].verdict not in ("PASS", "WAIVED")]
    series = [
        _series("bound", lines, lambda line: line.bound, "bound", "line"),
        _series("rounding floor", lines, lambda line: line.floor, "floor", "ticks"),
        _series("difference", lines, lambda line: line.relative, "paddle", "dots"),
        _series("fails", failing, lambda line: line.relative, "bad", "bad"),
    ]
    marks = (
        [Mark(failing[0][0], f"first divergence: {failing[0][1]}"[:52], "bad")] if failing else []
    )
    chart = Chart(
        title=f"{what}, {dtype}",
        description=_described(lines, failing, dtype),
        series=[one for one in series if any(y is not None for _, y in one.points)],
        x_label=x_label,
        y_label="relative difference",
        log=True,
        marks=marks,
    )
    caption = f"{dtype}. {chart.description}"
    return figure(line_chart(chart), caption)


Lines = Sequence[tuple[int, str, Line]]


def _series(
    label: str, lines: Lines, pick: Callable[[Line], float | str | None], colour: str, kind: str
) -> Series:
    points: list[Point] = [(number, value(pick(line))) for number, _, line in lines]
    if kind == "line":
        points = [point for point in points if point[1]]
    return Series(label, points, colour, kind)  # pyright: ignore[reportArgumentType]


def _described(lines: Lines, failing: Lines, dtype: str) -> str:
    if failing:
        return (
            f"{len(failing)} of {len(lines)} tensors fail, the first is {failing[0][1]} with a "
            f"difference of {shown(failing[0][2].relative)}."
        )
    worst = max(lines, key=lambda one: share(one[2]))
    largest = max(lines, key=lambda one: value(one[2].relative) or 0.0)
    return (
        f"All {len(lines)} tensors pass. Largest difference {shown(largest[2].relative)} at "
        f"{largest[1]}; nearest to its {dtype} bound {worst[1]}, at {share(worst[2]):.0%} of it."
    )
