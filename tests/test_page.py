"""The report page: what it says is what the evidence says, and nothing in a name breaks it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pages import CONFIG, ODD_NAME, write_logs

from common.errors import InputError
from pipeline.evidence import read_evidence
from pipeline.page.charts import Chart, Series, line_chart, paired_bars
from pipeline.page.html import Markup, element, table
from pipeline.page.index import refresh_index, write_index, write_pages
from pipeline.page.parts import shown
from pipeline.page.style import COLOURS_DARK, COLOURS_LIGHT

OPEN_ENDED = ("td", "th", "tr", "li", "dt", "dd")


class Page(HTMLParser):
    """Headings, cells, ids, links and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.resources: list[str] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.cell = False
        self.feed(text)
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if identity := found.get("id"):
            self.ids.append(identity)
        if tag == "a":
            self.links.append(found.get("href") or "")
        if tag in ("img", "link", "script", "iframe"):
            self.resources.append(found.get("src") or found.get("href") or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self.cell = tag in ("th", "td") or (self.cell and tag in ("span", "code", "a"))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tbody", "table", "thead"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder / "passing")
    write_logs(folder / "failing", wrong=True)
    return folder


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_verdict_comes_first_in_words(logs: Path) -> None:
    passing, failing = page_of(logs / "passing"), page_of(logs / "failing")
    assert passing.words.index("✓ PASS") < passing.words.index("Steps")
    assert "the Paddle port computes what Torch computes" in passing.words
    assert "✗ FAIL" in failing.words
    assert "data in float32 starts to differ at: val, epoch0, sample0, 5_dataset" in failing.words
    assert "Where and why" in failing.words
    assert "Where and why" not in passing.words


def test_a_failure_says_where_why_and_how_to_make_it_again(logs: Path) -> None:
    words = page_of(logs / "failing").words
    assert "Where: layer l3 (eval)" in words
    assert "Why: is 1.01 times <the reference> (constant-factor)" in words
    assert "The difference is 0.01; computed with this relation 2.2e-16 of it is left." in words
    assert "bisenet replay failing/failures/01_forward_float64" in words
    assert "first divergence: eval/layer/l3" in words
    assert "a bug, not chaos" in words


@pytest.mark.parametrize("name", ["passing", "failing"])
def test_the_numbers_of_every_tensor_are_those_of_the_evidence(logs: Path, name: str) -> None:
    evidence = read_evidence(logs / name / "evidence.json")
    assert evidence is not None
    page = page_of(logs / name)
    rows = {row[0]: row for row in page.rows if row}
    for step in ("forward", "backward"):
        for tensor in evidence.tensors[step]:
            if tensor.key == "label":
                # an input, in no figure
                continue
            numbers = [tensor.relative64, tensor.bound64, tensor.relative32, tensor.bound32]
            expected = [shown(number) for number in numbers]
            found = [row for row in page.rows if row and row[0] == tensor.key]
            # after the verdict, where one fails
            assert any(expected in (row[1:5], row[2:6]) for row in found), tensor.key
    curve = next(c for c in evidence.curves if (c.dtype, c.term) == ("float32", "total"))
    assert rows["5"][1] == shown(curve.torch[5], digits=6)
    assert rows["road"][1] == shown(evidence.scores[0].torch[0], digits=6)
    assert rows["fence"][1:] == ["-", "-", "absent"]


def test_the_evidence_holds_what_was_compared(logs: Path) -> None:
    evidence = read_evidence(logs / "failing" / "evidence.json")
    assert evidence is not None
    forward = {tensor.key: tensor.lines for tensor in evidence.tensors["forward"]}
    assert list(forward)[:4] == [f"eval/layer/l{n}" for n in range(4)]
    assert forward["eval/layer/l2"]["float64"].verdict == "PASS"
    assert forward["eval/layer/l3"]["float64"].verdict == "FAIL"
    assert forward["eval/layer/l3"]["float64"].relative == pytest.approx(0.01)
    (rates,) = evidence.rates
    assert (rates.total, rates.iterations[0], rates.iterations[-1]) == (500, 0, 499)
    assert rates.torch[-1] == 0
    assert len(rates.torch) == len(rates.paddle) == len(rates.iterations) < 60
    sample = next(p for p in evidence.samples if p.title.startswith("validation") and p.apart)
    assert (sample.differing, sample.size, sample.largest) == (32 * 4, 32 * 48, 0.5)
    equal = [pair for pair in evidence.samples if pair is not sample]
    assert all(pair.paddle is None and pair.differing == 0 for pair in equal)
    wide, _ = evidence.predictions
    assert wide.frame is not None
    assert wide.differing > 0
    assert wide.margin is not None
    assert evidence.scores[0].pixels_apart == 0


@pytest.mark.parametrize("name", ["passing", "failing"])
def test_a_name_cannot_break_the_page(logs: Path, name: str) -> None:
    text = (logs / name / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert f"eval/{ODD_NAME}" in {row[0] for row in page.rows if row}
    assert "<script" not in text


@pytest.mark.parametrize("name", ["passing", "failing"])
def test_the_page_needs_nothing_but_itself(logs: Path, name: str) -> None:
    page = page_of(logs / name)
    assert all(source.startswith("data:") for source in page.resources)
    assert set(page.links) <= {"../index.html", *(f"#{identity}" for identity in page.ids)}
    assert len(page.ids) == len(set(page.ids))
    assert str(logs) not in (logs / name / "report.html").read_text()


def test_every_section_is_there_and_a_chart_has_its_numbers(logs: Path) -> None:
    page = page_of(logs / "passing")
    for identity in ("steps", "layers", "gradients", "buffers", "rates", "training", "iou",
                     "flips", "samples", "others", "faults", "provenance"):  # fmt: skip
        assert identity in page.ids
    assert page.tags.count("svg") >= 10
    assert page.tags.count("h1") == 1


def test_the_faults_and_the_provenance_are_told(logs: Path) -> None:
    page = page_of(logs / "passing")
    assert "1 of 2 wrong ports, made on purpose, are caught" in page.words
    faults = [row for row in page.rows if row and row[0] in ("bias", "eps")]
    assert [row[0] for row in faults] == ["bias", "eps"]
    assert "SURVIVED" in faults[0][1]
    for words in ("bisenet verify --config c.yml", CONFIG.digest(), "numpy 2.0", "seed 0"):
        assert words in page.words


def test_logs_without_evidence_say_so(logs: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "summary.json").write_bytes((logs / "passing" / "summary.json").read_bytes())
    write_pages(tmp_path)
    words = page_of(old).words
    assert words.count("Not recorded by this run") >= 7
    assert "No audit beside these logs" in words
    assert "old" in Page((tmp_path / "index.html").read_text()).words


def test_the_index_names_what_fails(logs: Path) -> None:
    page = Page(write_index(logs).read_text())
    assert "1 of 2 configurations do not pass: failing." in page.words
    assert {"passing/report.html", "failing/report.html"} <= set(page.links)
    rows = {row[0]: row for row in page.rows if row and len(row) == 11}
    assert rows["passing"][1].endswith("PASS")
    assert rows["passing"][7] == "chaos"
    assert rows["failing"][7] == "bug"
    assert rows["passing"][8] == "1 of 2"


def test_pages_are_made_again_from_their_files_alone(logs: Path) -> None:
    before = (logs / "passing" / "report.html").read_text()
    (logs / "passing" / "report.html").unlink()
    written = write_pages(logs)
    assert [path.name for path in written] == ["report.html", "report.html", "index.html"]
    assert (logs / "passing" / "report.html").read_text() == before


def test_what_cannot_be_shown_is_refused_by_name(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no summary\.json there or in a folder below"):
        write_pages(tmp_path)
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "summary.json").write_text("[]")
    with pytest.raises(InputError, match=r"c/summary\.json: damaged \(no JSON object\)"):
        write_pages(tmp_path)
    (folder / "summary.json").write_bytes((logs / "passing" / "summary.json").read_bytes())
    (folder / "evidence.json").write_text('{"version": 1, "tensors": 3}')
    with pytest.raises(InputError, match=r"evidence\.json: damaged evidence"):
        write_pages(tmp_path)
    (tmp_path / "index.html").write_text("old")
    # a neighbour's damage is told, and does not end a verification
    assert refresh_index(tmp_path / "other") is None


def test_text_is_escaped_and_markup_is_not() -> None:
    made = element("p", "a < b & c", element("b", '"'), class_='x" onclick="y')
    assert made == ('<p class="x&quot; onclick=&quot;y">a &lt; b &amp; c<b>&quot;</b></p>')
    assert "<th scope=row>&lt;i&gt;" in table(("a",), [("<i>",)], caption="c")
    assert element("p", Markup("<i>")) == "<p><i></p>"


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0.0, "0"), (1.20e-7, "1.2e-7"), (1e-12, "1e-12"), ("inf", "inf"),
     (0.0413, "0.0413"), (82500.0, "8.25e4"), (12, "12"), (-3.5e-16, "-3.5e-16")],
)  # fmt: skip
def test_numbers_of_a_table(number: float | str | None, text: str) -> None:
    assert shown(number) == text


def test_a_chart_places_zero_infinity_and_what_is_missing() -> None:
    points = [(0.0, 0.0), (1.0, 1e-3), (2.0, float("inf")), (3.0, None), (4.0, float("nan"))]
    chart = Chart("t", "d", [Series("s", points, "paddle", "dots")], "x", "y", log=True)
    svg = line_chart(chart)
    # zero at the lower edge, the number one decade higher, the infinite at the upper edge
    assert svg.count("h0") == 3 + 1
    assert ">0</text>" in svg
    assert "nan" not in svg
    assert "inf" not in svg
    assert "absent" in paired_bars("t", "d", [("road", None, None), ("sky", 0.5, 0.5)])


def test_a_chart_of_one_value_has_axes() -> None:
    for log in (True, False):
        series = [Series("s", [(0.0, 2.0)], "torch", "line")]
        assert "<svg" in line_chart(Chart("t", "d", series, "x", "y", log=log))
    nothing = Chart("t", "d", [Series("s", [(0.0, None)], "torch", "dots")], "x", "y", log=True)
    assert "<svg" in line_chart(nothing)


def luminance(colour: str) -> float:
    parts = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colours", [COLOURS_LIGHT, COLOURS_DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("front", "back"),
    [(name, ground) for ground in ("bg", "card") for name in ("fg", "muted", "link")]
    + [(name, f"{name}-bg") for name in ("pass", "fail", "warn")]
    + [(name, "bg") for name in ("torch", "paddle", "floor", "fail")],
)
def test_contrast(colours: dict[str, str], front: str, back: str) -> None:
    lighter, darker = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_a_summary_of_a_stopped_run_has_a_page(logs: Path, tmp_path: Path) -> None:
    summary = json.loads((logs / "passing" / "summary.json").read_text())
    stopped = {**summary["results"][0], "verdict": "ERROR", "message": "paddle recorder: <boom>\nx",
               "worst": [], "records": {}, "inputs": None, "comparisons": 0}  # fmt: skip
    rest = {**stopped, "step": "training", "verdict": "NOT RUN", "message": "stopped after data"}
    folder = tmp_path / "c"
    folder.mkdir()
    text = json.dumps({**summary, "verdict": "ERROR", "results": [stopped, rest], "versions": {}})
    (folder / "summary.json").write_text(text)
    write_pages(tmp_path)
    words = page_of(folder).words
    assert "! ERROR" in words
    assert "paddle recorder: <boom>" in words
    assert "Not run after the failure: training (float32)." in words


def test_waivers_stand_in_plain_sight(logs: Path, tmp_path: Path) -> None:
    summary = json.loads((logs / "passing" / "summary.json").read_text())
    waiver = {"tensor": "eval/layer/<a>", "step": "forward", "dtype": "float64",
              "relation": {"kind": "factor", "value": 1.5}, "reason": "the weights & so on",
              "lifted_by": "the authors", "expires": "2027-01-31"}  # fmt: skip
    folder = tmp_path / "c"
    folder.mkdir()
    waived = {**summary, "verdict": "PASS with waivers", "waivers": [waiver]}
    (folder / "summary.json").write_text(json.dumps(waived))
    write_pages(tmp_path)
    page = page_of(folder)
    assert "PASS with waivers" in page.words
    assert "Waivers: 1, listed below." in page.words
    (row,) = [row for row in page.rows if row and row[0] == "eval/layer/<a>"]
    assert row[2:] == ["is 1.5 times Torch's", "the weights & so on", "the authors", "2027-01-31"]
    assert "Waivers: none." in page_of(logs / "passing").words
