"""``logs/index.html``: every verification below a folder, one line each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import InputError
from common.files import write_text
from pipeline import chain
from pipeline.page.html import Child, Markup, document, element, paragraph, section, table
from pipeline.page.parts import PASSING, SYMBOLS, badge, share, shown
from pipeline.page.report_page import FILE as REPORT
from pipeline.page.report_page import write_page
from pipeline.page.source import Source, read_source
from pipeline.page.style import STYLE
from pipeline.page.verdict import chaos_word, worst_of
from pipeline.steps import BOTH, STEP_NAMES

FILE = "index.html"
log = logging.getLogger(__name__)


def write_pages(logs: Path) -> list[Path]:
    """Make the page of every folder of logs below this one, or of it itself, and their index.

    Args:
        logs: ``logs``, or ``logs/<configuration>``, whose index is the one beside it.

    Returns:
        The files that were written, the index last.

    Raises:
        InputError: there are no logs, or a file is damaged.
    """
    alone = (logs / "summary.json").is_file()
    folders = [logs] if alone else _folders(logs)
    if not folders:
        raise InputError(
            f"{logs}: no summary.json there or in a folder below; expected the logs of "
            "`bisenet verify`"
        )
    pages = [write_page(folder) for folder in folders]
    index = refresh_index(logs) if alone else write_index(logs)
    return [*pages, *([index] if index else [])]


def refresh_index(folder: Path) -> Path | None:
    """Make the index beside a folder of logs again; None where there is none to be kept fresh."""
    if not (folder.parent / FILE).is_file():
        return None
    try:
        return write_index(folder.parent)
    except InputError as error:
        # a neighbour's damaged file is no reason to refuse this run's verdict
        log.warning("%s was not made again: %s", folder.parent / FILE, error)
        return None


def _folders(logs: Path) -> list[Path]:
    return sorted(path.parent for path in logs.glob("*/summary.json"))


def write_index(logs: Path) -> Path:
    """Make the index of a folder's verifications; return its path."""
    path = logs / FILE
    write_text(path, index_page([read_source(folder) for folder in _folders(logs)]))
    chain.renew(logs, FILE)
    return path


def index_page(sources: Sequence[Source]) -> str:
    """Return the index as HTML."""
    failing = [source for source in sources if source.verdict not in PASSING]
    waived = any(source.verdict != PASSING[0] for source in sources)
    verdict = PASSING[waived] if sources and not failing else "FAIL"
    symbol, style = SYMBOLS[verdict]
    words = (
        f"{len(sources)} configurations pass."
        if not failing
        else f"{len(failing)} of {len(sources)} configurations do not pass: "
        f"{', '.join(source.name for source in failing)}."
    )
    banner = element(
        "div",
        paragraph(element("span", symbol, aria_hidden="true"), f" {verdict}", class_="word"),
        paragraph(words),
        class_=f"verdict {style}",
        role="group",
        aria_label="Verdict",
    )
    header = element("header", element("h1", "Is each Paddle port its Torch network?"))
    main = element("main", banner, _overview(sources), _matrix(sources), id="main", tabindex=-1)
    title = f"{verdict}: {len(sources)} configurations"
    return document(title, style=STYLE, body=[header, main])


def _overview(sources: Sequence[Source]) -> Markup:
    rows = [_row(source) for source in sources]
    head = (
        *("configuration", "verdict", "network", "compared", "fail"),
        *(f"{dtype}, share of bound" for dtype in BOTH),
        *("float32 training", "faults caught", "commit", "date"),
    )
    return section(
        "configurations",
        "Configurations",
        table(head, rows, caption="One line per verification", text=(1, 2, 7, 8, 9, 10)),
    )


def _row(source: Source) -> list[Child]:
    results = source.results
    worst = [worst_of(source, dtype) for dtype in BOTH]
    audit = source.audit["findings"] if source.audit else None
    return [
        element("a", source.name, href=f"{source.name}/{REPORT}"),
        badge(source.verdict),
        str(source.summary["model"]),
        str(sum(int(one["comparisons"]) for one in results)),
        str(sum(int(one["failing"]) for one in results)),
        *(shown(share(line)) if line else "-" for line in worst),
        chaos_word(source) or "not recorded",
        f"{sum(bool(one['caught']) for one in audit)} of {len(audit)}" if audit else "no audit",
        element("code", str(source.summary.get("commit"))),
        str(source.summary.get("date", "")).partition("T")[0],
    ]


def _matrix(sources: Sequence[Source]) -> Markup:
    """Return every step of every configuration."""
    rows: list[list[Child]] = []
    for source in sources:
        verdicts: Mapping[str, list[str]] = {
            step: [str(one["verdict"]) for one in source.results if one["step"] == step]
            for step in STEP_NAMES
        }
        cells = [
            badge(next((v for v in found if v != "PASS"), "PASS")) if found else "not run"
            for found in verdicts.values()
        ]
        rows.append([source.name, *cells])
    head = ("configuration", *STEP_NAMES)
    text = tuple(range(1, len(head)))
    return section(
        "steps",
        "Steps",
        paragraph("The graver verdict of the two dtypes; the pages have each."),
        table(head, rows, caption="Steps of every verification", text=text),
    )
