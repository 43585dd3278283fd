"""Series of both sides: learning rates, losses with the band of perturbed runs, IoU per class."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evidence import Curve, Number, Rates, Scores
from pipeline.page.charts import Chart, Kind, Series, line_chart, paired_bars
from pipeline.page.html import Markup, details, element, paragraph, section, table
from pipeline.page.parts import figure, figures, shown, value
from pipeline.page.source import NOT_RECORDED, Source
from pipeline.page.verdict import chaos_point


def rates_section(source: Source) -> Markup:
    """Return the learning rates of every group on both sides."""
    rates = source.evidence.rates if source.evidence else []
    content = [_rate_chart(one) for one in rates]
    intro = (
        "Read from the optimizer at every iteration of the recipe's whole schedule, after real "
        "steps; every so many of them are drawn."
    )
    if not rates:
        return section("rates", "Learning rates", paragraph(NOT_RECORDED))
    together: dict[tuple[int, ...], list[Rates]] = {}
    for one in rates:
        together.setdefault(tuple(one.iterations), []).append(one)
    numbers = [_rate_table(groups) for groups in together.values()]
    return section("rates", "Learning rates", paragraph(intro), figures(content, numbers))


def _exact(number: Number) -> str:
    """Return a value of a series, with all digits that are kept."""
    return shown(number, digits=6)


def _line(label: str, xs: Sequence[int], ys: Sequence[Number], colour: str, kind: Kind) -> Series:
    points = [(float(x), value(y)) for x, y in zip(xs, ys, strict=True)]
    return Series(label, points, colour, kind)


def _rate_chart(rates: Rates) -> Markup:
    text = (
        f"Group {rates.group}: {rates.total} iterations, largest relative difference of the two "
        f"sides {shown(rates.largest)}."
    )
    chart = Chart(
        title=f"Learning rate of group {rates.group}",
        description=text,
        series=[
            _line("Torch", rates.iterations, rates.torch, "torch", "line"),
            _line("Paddle", rates.iterations, rates.paddle, "paddle", "dashed"),
        ],
        x_label="iteration",
        y_label="learning rate",
    )
    return figure(line_chart(chart), text)


def _rate_table(rates: Sequence[Rates]) -> Markup:
    """Return the rates of groups that are kept at the same iterations."""
    head = ["iteration"]
    columns = [[str(number) for number in rates[0].iterations]]
    for one in rates:
        head += [f"{one.group}, Torch", f"{one.group}, Paddle"]
        columns += [[_exact(rate) for rate in side] for side in (one.torch, one.paddle)]
    caption = f"Learning rates of {len(rates)} groups"
    rows = zip(*columns, strict=True)
    return details(f"{caption}, in numbers", table(head, rows, caption=caption))


def training_section(source: Source) -> Markup:
    """Return the losses of the short training, and whether float32 is chaos or a bug."""
    curves = source.evidence.curves if source.evidence else []
    if not curves:
        return section("training", "Training", paragraph(NOT_RECORDED))
    by_dtype: dict[str, list[Curve]] = {}
    for curve in curves:
        by_dtype.setdefault(curve.dtype, []).append(curve)
    totals = [curve for curve in curves if curve.term == "total"]
    charts = [_loss_chart(curve) for curve in totals]
    charts += [_band_chart(curve) for curve in curves if curve.band is not None]
    point = chaos_point(source)
    return section(
        "training",
        "Training, and chaos or bug",
        paragraph(
            "The recipe end to end, shrunk. In float64 the two sides must stay equal. In float32 "
            "training amplifies rounding, so two right programs drift apart; how far rounding "
            "alone carries a run is measured by Torch against Torch, with every start weight "
            "moved by one unit in the last place. Paddle within so many of these bands is chaos, "
            "beyond them a bug."
        ),
        *([paragraph(element("strong", point))] if point else []),
        figures(charts, [_loss_table(one) for one in by_dtype.values()]),
    )


def _loss_chart(curve: Curve) -> Markup:
    xs = range(len(curve.torch))
    apart = [value(one) or 0.0 for one in curve.apart]
    text = (
        f"Total loss in {curve.dtype}, {len(curve.torch)} iterations, from "
        f"{_exact(curve.torch[0])} to {_exact(curve.torch[-1])}; the sides are at most "
        f"{shown(max(apart, default=0.0))} apart."
    )
    chart = Chart(
        title=f"Training loss, {curve.dtype}",
        description=text,
        series=[
            _line("Torch", xs, curve.torch, "torch", "line"),
            _line("Paddle", xs, curve.paddle, "paddle", "dashed"),
        ],
        x_label="iteration",
        y_label="loss",
    )
    return figure(line_chart(chart), text)


def _band_chart(curve: Curve) -> Markup:
    xs = range(len(curve.torch))
    band = [value(one) for one in curve.band or []]
    factor = curve.factor or 0.0
    limit = [None if one is None else one * factor for one in band]
    text = (
        f"Loss {curve.term} in float32: distance of Paddle from Torch, and of Torch from itself "
        f"when its weights move by one unit in the last place. Allowed: {factor:g} bands."
    )
    chart = Chart(
        title=f"Chaos or bug: loss {curve.term}, float32",
        description=text,
        series=[
            _line(f"allowed ({factor:g} bands)", xs, limit, "bound", "limit"),
            _line("Torch moved by 1 ulp (band)", xs, band, "torch", "line"),
            _line("Paddle from Torch", xs, curve.apart, "paddle", "dots"),
        ],
        x_label="iteration",
        y_label="distance from Torch",
        log=True,
    )
    return figure(line_chart(chart), text)


def _loss_table(curves: Sequence[Curve]) -> Markup:
    """Return all terms of one dtype: the total on both sides, of the others how far apart."""
    head, columns = ["iteration"], list[Sequence[str]]()
    for curve in curves:
        if curve.term == "total":
            head += ["total, Torch", "total, Paddle"]
            columns += [[_exact(x) for x in side] for side in (curve.torch, curve.paddle)]
        head.append(f"{curve.term}, apart")
        columns.append([shown(x) for x in curve.apart])
        if curve.band is not None:
            head.append(f"{curve.term}, band")
            columns.append([shown(x) for x in curve.band])
    rows = [[str(number), *values] for number, values in enumerate(zip(*columns, strict=True))]
    caption = f"Losses per iteration, {curves[0].dtype}"
    return details(f"{caption}, in numbers", table(head, rows, caption=caption))


def scores_section(source: Source) -> Markup:
    """Return the IoU of every class on both sides."""
    scores = source.evidence.scores if source.evidence else []
    if not scores:
        return section("iou", "IoU per class", paragraph(NOT_RECORDED))
    parts: list[Markup] = []
    for one in scores:
        parts += _scores(one)
    return section("iou", "IoU per class", *parts)


def _scores(scores: Scores) -> list[Markup]:
    rows = list(zip(scores.classes, scores.torch, scores.paddle, strict=True))
    text = (
        f"{scores.title}: mIoU {_exact(scores.torch_mean)} with Torch, "
        f"{_exact(scores.paddle_mean)} with Paddle; {scores.pixels_apart} pixels are counted "
        "differently."
    )
    drawn = [(name, value(torch), value(paddle)) for name, torch, paddle in rows]
    chart = figure(paired_bars(f"IoU per class, {scores.title}", text, drawn), text)
    cells = [
        (
            name,
            _exact(torch),
            _exact(paddle),
            "absent" if torch is None and paddle is None else "",
        )
        for name, torch, paddle in rows
    ]
    cells.append(("mean", _exact(scores.torch_mean), _exact(scores.paddle_mean), ""))
    head = ("class", "Torch", "Paddle", "note")
    caption = f"IoU per class, {scores.title}"
    numbers = details(f"{caption}, in numbers", table(head, cells, caption=caption, text=(3,)))
    return [figures([chart], numbers)]
