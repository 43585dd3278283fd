"""What a reviewer reads first: the verdict and its reasons, the steps, where and why it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.chaos import BAND, BUG, CHAOS
from pipeline.evidence import Line
from pipeline.page.html import Markup, details, element, paragraph, section, table
from pipeline.page.parts import PASSING, SYMBOLS, badge, facts_list, share, shown
from pipeline.page.source import Json, Source
from pipeline.steps import BOTH, STEPS
from pipeline.waivers import Relation

MEANING: Mapping[str, str] = {
    "PASS": "In everything that was compared, the Paddle port computes what Torch computes.",
    "PASS with waivers": "The Paddle port computes what Torch computes but for what is waived.",
    "FAIL": "The Paddle port computes something else.",
    "MISSING": "One side recorded what the other did not.",
    "VACUOUS": "A check compared nothing that could have differed; it proves nothing.",
    "ERROR": "A recorder failed, or the two records are not of the same inputs. No verdict.",
    "NOT RUN": "The run stopped before everything was compared.",
}
TITLES: Mapping[str, str] = {step.name: step.title for step in STEPS}


def verdict_banner(source: Source) -> Markup:
    """Return the verdict in words, colour and a symbol, and what it means."""
    verdict = source.verdict
    symbol, style = SYMBOLS.get(verdict, ("?", "fail"))
    word = paragraph(element("span", symbol, aria_hidden="true"), f" {verdict}", class_="word")
    lines = [paragraph(MEANING.get(verdict, ""))]
    if source.summary.get("inject"):
        lines.append(paragraph(f"With {source.summary['inject']}."))
    for result in first_failures(source):
        where = f"{result['step']} in {result['dtype']} starts to differ at: "
        lines.append(paragraph(where, _place(result)))
        lines += [
            paragraph("Itself wrong: ", element("code", str(blame["where"])), _because(blame))
            for blame in _blames(result)[:1]
        ]
    missing = [name for name in TITLES if name not in {r["step"] for r in source.results}]
    if missing:
        lines.append(paragraph(f"Not the whole proof: not asked for were {', '.join(missing)}."))
    return element(
        "div", word, *lines, class_=f"verdict {style}", role="group", aria_label="Verdict"
    )


def _because(blame: Json) -> str:
    hints: Sequence[Json] = blame["hints"]
    return f", which {hints[0]['text']}" if hints else ""


def first_failures(source: Source) -> Sequence[Json]:
    """Return the first failing result of the run, which those after it may only follow."""
    return _failing(source)[:1]


def _failing(source: Source) -> list[Json]:
    return [r for r in source.results if r["verdict"] not in (*PASSING, "NOT RUN")]


def _place(result: Json) -> Markup:
    text = result["starts_at"] or str(result["message"]).partition("\n")[0] or "see below"
    return element("code", str(text))


def key_points(source: Source) -> Markup:
    """Return the few numbers that a decision rests on."""
    results = source.results
    comparisons = sum(int(result["comparisons"]) for result in results)
    failing = sum(int(result["failing"]) for result in results)
    points = [
        f"{comparisons} comparisons{_elements(source)} in {len(results)} runs of "
        f"{len({result['step'] for result in results})} steps; {failing} fail.",
        *_worst_points(source),
        chaos_point(source),
        audit_point(source),
        waivers_point(source),
        f"Inputs: {source.summary['data']}, weights {source.summary['weights']}, seed "
        f"{source.summary['seed']}, {source.summary['device']}.",
    ]
    return element("ul", [element("li", point) for point in points if point])


def _elements(source: Source) -> str:
    counts = source.evidence.counts if source.evidence else []
    total = sum(count.elements for count in counts)
    return f" of {total:,} numbers" if total else ""


def _worst_points(source: Source) -> list[str]:
    found: list[str] = []
    for dtype in BOTH:
        worst = _worst(source, dtype)
        if worst is None:
            continue
        step, row = worst
        used = share(_line(row))
        where = "Nearest to its bound" if used <= 1 else "Furthest beyond its bound"
        found.append(
            f"{where} in {dtype}: {row['tensor']} ({step}), difference {shown(row['relative'])} "
            f"of {shown(row['bound'])} allowed" + (f", {used:.0%} of it." if used < 100 else ".")
        )
    return found


def _line(row: Json) -> Line:
    return Line(str(row["verdict"]), row["relative"], row["bound"])


def _worst(source: Source, dtype: str) -> tuple[str, Json] | None:
    rows: list[tuple[str, Json]] = [
        (str(result["step"]), row)
        for result in source.results
        for row in result["worst"]
        if result["dtype"] == dtype and row["bound"]
    ]
    return max(rows, key=lambda one: share(_line(one[1])), default=None)


def worst_of(source: Source, dtype: str) -> Line | None:
    """Return the tensor that uses most of its bound, of all steps in this dtype."""
    worst = _worst(source, dtype)
    return None if worst is None else _line(worst[1])


def _bands(source: Source) -> Mapping[str, Line]:
    return {
        key: found["float32"]
        for key, found in source.worst_lines("training").items()
        if key.startswith(BAND) and "float32" in found
    }


def chaos_word(source: Source) -> str:
    """Return "chaos" or "bug" for the float32 training, empty where it was not recorded."""
    bands = _bands(source).values()
    if not bands:
        return ""
    return BUG if any(line.detail.startswith(BUG) for line in bands) else CHAOS


def chaos_point(source: Source) -> str:
    """Return in words whether the float32 training differs by rounding or by more."""
    bands = _bands(source)
    if not bands:
        return ""
    key, line = max(bands.items(), key=lambda one: share(one[1]))
    word = "chaos, not a bug"
    if chaos_word(source) == BUG:
        word = "a bug, not chaos"
    elif source.verdict.partition(" ")[0] != "PASS":
        word = "its loss alone would pass for chaos, which excuses nothing that fails"
    detail = line.detail.partition(": ")[2] or line.detail
    return f"float32 training: {word}. At worst Paddle ({key.removeprefix(BAND)}) is {detail}."


def audit_point(source: Source) -> str:
    """Return how many deliberate faults the pipeline has caught."""
    if source.audit is None:
        return "No audit beside these logs: whether faults would be noticed is not shown here."
    findings = source.audit["findings"]
    caught = sum(bool(finding["caught"]) for finding in findings)
    return f"{caught} of {len(findings)} deliberate faults of this network are caught."


def waivers_point(source: Source) -> str:
    """Return how many differences are accepted."""
    waivers = source.summary.get("waivers")
    if waivers is None:
        return "Waivers: not recorded by this run."
    return f"Waivers: {len(waivers)}, listed below." if waivers else "Waivers: none."


def waivers_section(source: Source) -> Markup | None:
    """Return every accepted difference, with its reason and its end; None where there is none."""
    waivers: Sequence[Json] = source.summary.get("waivers") or ()
    if not waivers:
        return None
    rows = [
        (
            str(one["tensor"]),
            f"{one['step']} ({one['dtype']})",
            Relation(**one["relation"]).text,
            str(one["reason"]),
            str(one["lifted_by"]),
            str(one["expires"]),
        )
        for one in waivers
    ]
    head = ("tensor", "step", "Paddle's number", "reason", "who can lift it", "expires")
    listed = table(head, rows, caption="Accepted differences", text=(1, 2, 3, 4, 5))
    text = (
        "Known differences that are accepted until they expire. Each relation was computed and "
        "holds to the tensor's bound; one that is expired or unused fails the step."
    )
    return section("waivers", "Waivers", paragraph(text), listed)


def steps_section(source: Source) -> Markup:
    """Return the table of steps: both dtypes, what was compared, the worst tensor."""
    rows = [_step_row(result) for result in source.results]
    head = ("step", "dtype", "verdict", "compared", "fail", "worst tensor", "difference", "bound")
    listed = table(head, rows, caption="Steps in the order in which they run", text=(1, 2, 5))
    legend = facts_list(list(TITLES.items()))
    return section(
        "steps",
        "Steps",
        paragraph(
            "Reference is Torch, actual is Paddle. A difference is the largest over a tensor, "
            "relative to the tensor's largest reference value. float64 decides whether both are "
            "the same program; float32 is held against the rounding that was measured."
        ),
        listed,
        details("What each step records", legend),
    )


def _step_row(result: Json) -> list[Markup | str]:
    worst: Mapping[str, Any] = result["worst"][0] if result["worst"] else {}
    text = worst.get("tensor") or str(result["message"]).partition("\n")[0]
    return [
        str(result["step"]),
        str(result["dtype"]),
        badge(str(result["verdict"])),
        str(result["comparisons"]),
        str(result["failing"]),
        str(text),
        shown(worst.get("relative")),
        shown(worst.get("bound")),
    ]


def failures_section(source: Source) -> Markup | None:
    """Return where each failure starts, why, and how it is made again alone."""
    failing = _failing(source)
    if not failing:
        return None
    parts: list[Markup] = []
    for result in failing:
        title = element(
            "h3", badge(str(result["verdict"])), f" {result['step']}, ", result["dtype"]
        )
        parts += [title, *_failure(result)]
    rest = [f"{r['step']} ({r['dtype']})" for r in source.results if r["verdict"] == "NOT RUN"]
    if rest:
        parts.append(paragraph(f"Not run after the failure: {', '.join(rest)}."))
    return section("failures", "Where and why", *parts)


def _failure(result: Json) -> list[Markup]:
    parts: list[Markup] = []
    if result["starts_at"]:
        parts.append(paragraph("Starts at: ", element("code", str(result["starts_at"]))))
    if result["message"]:
        parts.append(element("pre", str(result["message"])))
    rows = [
        (
            str(row["tensor"]),
            badge(str(row["verdict"])),
            shown(row["relative"]),
            shown(row["bound"]),
            str(row["detail"]),
        )
        for row in result["worst"]
        if row["verdict"] not in (*PASSING, "WAIVED")
    ]
    if rows:
        head = ("tensor", "verdict", "difference", "bound", "what is wrong")
        caption = f"Worst of {result['failing']} failing tensors"
        parts.append(table(head, rows, caption=caption, text=(1, 4)))
    parts += [_blame(blame) for blame in _blames(result)]
    if result.get("investigation"):
        parts.append(paragraph(f"Investigation: {result['investigation']}."))
    return parts


def _blames(result: Json) -> Sequence[Json]:
    """Return what is itself wrong in a failing result, the first in computation order first."""
    return result.get("blames") or ()


def _blame(blame: Json) -> Markup:
    hints: Sequence[Mapping[str, Any]] = blame["hints"]
    parts = [
        paragraph("Where: ", element("strong", str(blame["where"]))),
        *(_hint(hint) for hint in hints),
    ]
    if not hints:
        text = f"Why: no known relation explains the difference to rounding. {blame['note']}"
        parts.append(paragraph(text.strip()))
    parts.append(paragraph("This tensor alone:"))
    parts.append(element("pre", str(blame["replay"])))
    return element("div", *parts, class_="case")


def _hint(hint: Mapping[str, Any]) -> Markup:
    text = (
        f" The difference is {shown(float(hint['before']))}; computed with this relation "
        f"{shown(float(hint['residual']))} of it is left."
    )
    return paragraph(
        "Why: ",
        element("strong", str(hint.get("text", ""))),
        f" ({hint.get('relation', '')})",
        text,
    )
