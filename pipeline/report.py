"""The evidence: one log per step, a JSON summary and a JUnit file, each written at once."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common.files import write_text
from common.provenance import code_digest, git_commit
from pipeline import chain
from pipeline.blame_lines import blame_lines, blame_summary
from pipeline.evidence import FILE as EVIDENCE
from pipeline.evidence import write_evidence
from pipeline.judge import Result
from pipeline.outcome import Options, Outcome
from pipeline.page.report_page import write_page
from pipeline.rounding import CROSS_FACTOR
from pipeline.step_logs import kinds_line
from pipeline.steps import SIDES, Step
from pipeline.verdicts import Row, Verdict, bound_for, one_row_per_tensor, tensor_of
from pipeline.waivers import waivers_of

WORST_IN_SUMMARY = 3
_NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, not even escaped; terminal colours in a recorder's error."""


def write_reports(outcome: Outcome) -> list[Path]:
    """Write the logs, ``evidence.json``, ``summary.json``, ``junit.xml``; return their paths.

    ``<step>_diff.log`` for every step, and ``report.html`` for whoever reads them all.
    """
    out = outcome.options.out
    head = _provenance(outcome)
    paths: list[Path] = []
    digests: dict[str, str] = {}
    for name in dict.fromkeys(result.step.name for result in outcome.results):
        results = [result for result in outcome.results if result.step.name == name]
        path = out / f"{name}_diff.log"
        text = _step_log(results, head, outcome.options)
        write_text(path, text)
        digests[path.name] = _digest(text)
        paths.append(path)
    kept = outcome.evidence.evidence(listed=outcome.options.listed)
    digests[EVIDENCE] = _digest(write_evidence(out / EVIDENCE, kept))
    write_text(out / "junit.xml", _junit(outcome))
    write_text(out / "config.yml", _resolved(outcome))
    paths += [out / name for name in (EVIDENCE, "summary.json", "junit.xml", "config.yml")]
    # last: the summary holds the digest of every other file, and its own
    chain.seal(out, _summary(outcome, head, digests), written=paths)
    # but the page's, which is made from it
    return [*paths, write_page(out)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _resolved(outcome: Outcome) -> str:
    """Return the configuration as it was run; of the data's place only the last folder."""
    config = outcome.config
    data = config.data.model_copy(
        update={
            "root": Path(config.data.root.name),
            "train_list": _placeless(config.data.train_list),
            "val_list": _placeless(config.data.val_list),
        }
    )
    model = config.model.model_copy(
        update={
            "weights": _placeless(config.model.weights),
            "backbone_weights": _placeless(config.model.backbone_weights),
            "pair": config.model.pair and config.model.pair.without_place(),
        }
    )
    head = "# Written by the verification: every value in force. Digests are in summary.json.\n"
    return head + config.model_copy(update={"data": data, "model": model}).dump_yaml()


def _placeless(path: Path | None) -> Path | None:
    return Path(path.name) if path is not None and path.is_absolute() else path


def _provenance(outcome: Outcome) -> dict[str, Any]:
    metas = [result.meta for result in outcome.results if result.meta]
    versions: dict[str, dict[str, str]] = {}
    for side in SIDES:
        versions[side] = dict(metas[0][side]["versions"]) if metas else {}
    options = outcome.options
    wrong = f"{options.inject}: a deliberate fault, this is no evidence"
    return {
        **({"inject": wrong} if options.inject else {}),
        "config_digest": outcome.config.digest(),
        "recipe_digest": outcome.config.recipe_digest(),
        "code_digest": _code(outcome),
        "commit": git_commit(),
        "command": options.command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": outcome.config.model.name,
        "weights": str(options.weights.name) if options.weights else "by rule",
        "data": "real" if options.data else "generated scenes",
        "device": options.device,
        "seed": outcome.config.verify.seed,
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _code(outcome: Outcome) -> str:
    """Return the digest of the code that was run; of code edited meanwhile nobody can tell."""
    if outcome.code == code_digest():
        return outcome.code
    return f"changed during the run, which began with {outcome.code}"


def _step_log(results: Sequence[Result], head: dict[str, Any], options: Options) -> str:
    step = results[0].step
    lines = [
        f"step {step.name}: {step.title}",
        "reference = torch, actual = paddle",
        *(f"{key}: {value}" for key, value in head.items()),
        "",
    ]
    for result in results:
        lines += [*_result_lines(result, options), ""]
    lines.append(f"verdict of step {step.name}: {worst_verdict(results).value}")
    return "\n".join(lines) + "\n"


def worst_verdict(results: Sequence[Result]) -> Verdict:
    """Return PASS when all results passed, perhaps with waivers, else the first other verdict."""
    if not results:
        return Verdict.VACUOUS
    waived = any(result.verdict is Verdict.WITH_WAIVERS for result in results)
    passed = Verdict.WITH_WAIVERS if waived else Verdict.PASS
    return next((r.verdict for r in results if not r.verdict.passed), passed)


def _result_lines(result: Result, options: Options) -> list[str]:
    listed = options.listed
    lines = [f"== {result.step.name} in {result.dtype}: {result.verdict.value} =="]
    if result.message:
        lines.append(result.message)
    if result.divergence:
        lines.append(f"starts at: {result.divergence.text}")
    lines += blame_lines(result, options.out)
    if result.meta:
        inputs = result.meta[SIDES[0]]["inputs"]
        lines.append(f"inputs: {inputs}")
        lines.append(f"data set: {result.meta[SIDES[0]]['data']}")
        lines.append(f"weights: {result.meta[SIDES[0]].get('weights', 'unknown')}")
        for side in SIDES:
            loaded = ", ".join(result.meta[side].get("frameworks", ()))
            digest = result.meta[side]["digest"]
            lines.append(f"record of {side}: sha256 {digest}, with {loaded or 'unknown'} loaded")
    lines += rule_lines(result.step, result.dtype)
    narrow = result.dtype == "float32" and "float64" in result.step.dtypes
    if narrow and result.step.official is not None:
        lines.append(official_line(result))
    rows, counts = one_row_per_tensor(result.rows)
    if rows:
        lines.append(kinds_line(result.step.name, [row.key for row in rows]))
        lines.append(
            f"{len(result.rows)} comparisons of {len(rows)} tensors, worst first; relative = "
            "max_abs / largest |reference| = the bound that would have passed"
        )
        lines.append(
            f"{'verdict':8} {'relative':>9} {'bound':>9} {'max_abs':>9} {'mean_abs':>9} "
            f"{'max_rel':>9} {'over':>7} {'size':>9}  tensor [index of max] detail"
        )
    failing = sum(not row.verdict.passed for row in rows)
    shown = len(rows) if listed is None else max(listed, failing)
    lines += [_row_line(row, counts[tensor_of(row.key)]) for row in rows[:shown]]
    if rest := rows[shown:]:
        lines.append(
            f"{len(rest)} more tensors pass, each with at most {rest[0].severity[1]:.1%} of its "
            "bound; a run of this configuration alone lists them"
        )
    return lines


def rule_lines(step: Step, dtype: str) -> list[str]:
    """Return the lines that say by which bounds a step was judged."""
    if dtype == "float32" and "float64" in step.dtypes:
        lines = [
            f"rule: |torch32 - paddle32| <= {CROSS_FACTOR:g} x floor, floor = |torch32 - torch64| "
            "+ |paddle32 - paddle64|, and paddle's own rounding against torch's:"
        ]
        return lines + [
            f"  at most {b.relative:g} times for {b.pattern}: {b.reason}" for b in step.rounding
        ]
    return [f"bound {b.relative:g} for {b.pattern}: {b.reason}" for b in step.bounds]


def official_line(result: Result) -> str:
    """Report the reproduction guide's own threshold, which decides nothing here."""
    threshold = result.step.official
    assert threshold is not None
    rows = [row for row in result.rows if row.size and row.floor is not None]
    if not rows:
        return f"official threshold {threshold:g}: no floating tensor"
    inside = sum(row.mean_abs <= threshold for row in rows)
    worst = max(rows, key=lambda row: row.mean_abs)
    return (
        f"official threshold (reported, does not decide): mean abs difference <= {threshold:g} "
        f"holds for {inside} of {len(rows)} tensors; largest {worst.mean_abs:.2e} at {worst.key}"
    )


def _row_line(row: Row, count: int) -> str:
    text = (
        f"{row.verdict.value:8} {row.relative:9.2e} {row.bound:9.2e} {row.max_abs:9.2e} "
        f"{row.mean_abs:9.2e} {row.max_rel:9.2e} {row.over:7d} {row.size:9d}  {row.key}"
    )
    if row.max_abs:
        text += f" {list(row.index)}"
    if row.floor is not None and row.self_ratio is not None:
        text += f" floor {row.floor:.1e} paddle/torch rounding {row.self_ratio:.2f}"
    if count > 1:
        text += f" (worst of {count})"
    return f"{text} {row.detail}".rstrip()


def _summary(outcome: Outcome, head: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    results = outcome.results
    return {
        **head,
        "verify": outcome.config.verify.model_dump(mode="json"),
        "verdict": worst_verdict(results).value,
        "exit_code": outcome.exit_code,
        "seconds": round(outcome.seconds, 1),
        "peak_mib": outcome.peak_mib,
        "waivers": [
            waiver.model_dump(mode="json")
            for waiver in waivers_of(outcome.options.out, outcome.options.waivers)
        ],
        "results": [_result_summary(result, outcome.options.out) for result in results],
        "logs": digests,
    }


def _result_summary(result: Result, out: Path) -> dict[str, Any]:
    rows, _ = one_row_per_tensor(result.rows)
    return {
        "step": result.step.name,
        "dtype": result.dtype,
        "verdict": result.verdict.value,
        "message": result.message,
        "starts_at": result.divergence.text if result.divergence else "",
        "blames": [blame_summary(blame, out) for blame in result.blames],
        "investigation": result.investigation,
        "comparisons": len(result.rows),
        "failing": sum(not row.verdict.passed for row in result.rows),
        "seconds": dict(result.seconds or {}),
        "records": {side: meta["digest"] for side, meta in (result.meta or {}).items()},
        "inputs": result.meta[SIDES[0]]["inputs"] if result.meta else None,
        "worst": [
            {
                "tensor": row.key,
                "verdict": row.verdict.value,
                "relative": finite(row.relative),
                "bound": finite(row.bound),
                "why": bound_for(row.key, result.step.bounds).reason,
                "detail": row.detail,
            }
            for row in rows[:WORST_IN_SUMMARY]
        ],
    }


def finite(value: float) -> float | str:
    """Return a number that JSON can hold: infinity becomes a text."""
    return value if value == value and abs(value) != float("inf") else str(value)


def _junit(outcome: Outcome) -> str:
    suite = ElementTree.Element("testsuite", name=f"bisenet verify {outcome.config.model.name}")
    failures = errors = skipped = 0
    for result in outcome.results:
        seconds = max((result.seconds or {}).values(), default=0.0)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{outcome.config.model.name}.{result.step.name}",
            name=f"{result.step.name}[{result.dtype}]",
            time=f"{seconds:.2f}",
        )
        if result.verdict.passed:
            continue
        kind = {Verdict.ERROR: "error", Verdict.NOT_RUN: "skipped"}.get(result.verdict, "failure")
        errors += kind == "error"
        skipped += kind == "skipped"
        failures += kind == "failure"
        node = ElementTree.SubElement(case, kind, message=without_controls(headline(result)))
        failing = [row for row in result.rows if not row.verdict.passed]
        lines = [f"{row.verdict.value} {row.key} {row.detail}" for row in failing[:20]]
        node.text = without_controls("\n".join(lines))
    suite.set("tests", str(len(outcome.results)))
    suite.set("failures", str(failures))
    suite.set("errors", str(errors))
    suite.set("skipped", str(skipped))
    ElementTree.indent(suite)
    # as bytes, for the declaration must name the encoding of the file, not that of the terminal
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"


def without_controls(text: str) -> str:
    """Return the text with a ? for each character that XML cannot hold."""
    return _NOT_IN_XML.sub("?", text)


def headline(result: Result) -> str:
    """Return one line on a result: what stopped it, where it starts, or its worst tensor."""
    if result.message:
        return result.message.splitlines()[0]
    if result.blames:
        return f"{result.verdict.value} itself wrong: {result.blames[0].text}"
    if result.divergence:
        return f"{result.verdict.value} starts at {result.divergence.text}"
    worst = result.worst
    return f"worst {worst.key} {worst.relative:.1e}" if worst else ""
