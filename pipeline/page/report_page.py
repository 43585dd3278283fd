"""``logs/<configuration>/report.html``: one verification on one page."""

from __future__ import annotations

import re
from pathlib import Path

from common.files import write_text
from pipeline import chain
from pipeline.page.curves import rates_section, scores_section, training_section
from pipeline.page.html import Markup, document, element, paragraph
from pipeline.page.pictures import flips_section, samples_section
from pipeline.page.proof import faults_section, provenance_section
from pipeline.page.source import Source, read_source
from pipeline.page.style import STYLE
from pipeline.page.tensors import buffers_section, gradients_section, layers_section, update_section
from pipeline.page.verdict import (
    failures_section,
    key_points,
    steps_section,
    verdict_banner,
    waivers_section,
)

FILE = "report.html"
_HEADING = re.compile(r"<h2 id=([a-z]+)-title>(.*?)</h2>")


def write_page(folder: Path) -> Path:
    """Make the page of a folder of logs from its files; return its path.

    Raises:
        InputError: there is no summary there, or a file is damaged.
    """
    path = folder / FILE
    write_text(path, report_page(read_source(folder)))
    # the chain covers the page, which is made from what the chain is in
    chain.renew(folder, FILE)
    return path


def report_page(source: Source) -> str:
    """Return the page as HTML."""
    sections = [
        failures_section(source),
        waivers_section(source),
        steps_section(source),
        layers_section(source),
        gradients_section(source),
        buffers_section(source),
        rates_section(source),
        training_section(source),
        scores_section(source),
        flips_section(source),
        samples_section(source),
        update_section(source),
        faults_section(source),
        provenance_section(source),
    ]
    content = Markup("".join(one for one in sections if one))
    summary = source.summary
    header = element(
        "header",
        element("h1", f"{source.name}: is the Paddle port the Torch network?"),
        paragraph(
            f"Model {summary['model']}, verified {summary.get('date')} at commit "
            f"{summary.get('commit')}. ",
            element("a", "All configurations", href="../index.html"),
            class_="muted",
        ),
    )
    main = element("main", verdict_banner(source), key_points(source), _contents(content), content,
                   id="main", tabindex=-1)  # fmt: skip
    footer = element(
        "footer",
        f"Made from the files of {source.name}/ by `bisenet report`; the verdict is that of "
        "summary.json.",
    )
    title = f"{source.verdict}: {source.name}"
    return document(title, style=STYLE, body=[header, main, footer])


def _contents(content: Markup) -> Markup:
    """Return links to the sections, by their own headings."""
    links = [
        element("li", element("a", Markup(title), href=f"#{identity}"))
        for identity, title in _HEADING.findall(content)
    ]
    return element("nav", element("ul", links), aria_label="Sections")
