"""The report page in a real browser: Debian's Chromium without a screen, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import write_logs

from pipeline.page.index import write_index

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine; apt install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PAGES = ("passing/report.html", "failing/report.html", "index.html")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder / "passing")
    write_logs(folder / "failing", wrong=True)
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # in a container there is no sandbox to be had; the pages are our own
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, logs: Path) -> Iterator[Any]:
    """Open a page; whatever the console says or the page asks for is kept with it."""
    opened: list[Any] = []

    def open_page(name: str, width: int = 1280, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((logs / name).as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_it_is_quiet_and_loads_nothing(visit: Any, logs: Path, name: str) -> None:
    page = visit(name)
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [(logs / name).as_uri()]
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_only_tables_scroll_sideways(visit: Any, name: str, width: int) -> None:
    page = visit(name, width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order(visit: Any, name: str) -> None:
    levels = visit(name).evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


@pytest.mark.parametrize("name", PAGES)
def test_it_can_be_read_aloud(visit: Any, name: str) -> None:
    page = visit(name)
    wrong = page.evaluate("""() => {
        const wrong = [];
        const need = (ok, what) => { if (!ok) wrong.push(what); };
        need(document.documentElement.lang === 'en', 'language');
        need(document.title.length > 5, 'title');
        need(document.querySelectorAll('main').length === 1, 'one main');
        need(document.querySelectorAll('header').length === 1, 'one header');
        for (const svg of document.querySelectorAll('svg')) {
            const ids = (svg.getAttribute('aria-labelledby') || '').split(' ');
            const named = ids.every(id => (document.getElementById(id) || {}).textContent);
            need(svg.getAttribute('role') === 'img' && ids.length === 2 && named, 'svg');
            need(svg.closest('section').querySelector('table'), 'a figure without its numbers');
        }
        for (const image of document.images) need(image.alt, 'an image without a text');
        for (const table of document.querySelectorAll('table')) {
            need(table.caption && table.caption.textContent, 'caption');
            const heads = [...table.querySelectorAll('th')];
            need(heads.every(th => ['col', 'row'].includes(th.scope)), 'scope');
            const width = table.tHead.rows[0].cells.length;
            need([...table.tBodies[0].rows].every(r => r.cells.length === width), 'cells');
        }
        for (const s of document.querySelectorAll('section'))
            need(document.getElementById(s.getAttribute('aria-labelledby')), 'section name');
        for (const a of document.querySelectorAll('a[href^="#"]'))
            need(document.getElementById(a.hash.slice(1)), 'link to nowhere ' + a.hash);
        return wrong;
    }""")
    assert wrong == []


def test_the_keyboard_reaches_everything(visit: Any) -> None:
    page = visit("failing/report.html")
    every = "[...document.querySelectorAll('a,summary,.scroll')]"
    reachable = page.evaluate(f"{every}.filter(e => e.checkVisibility()).length")
    names: list[str] = []
    for _ in range(reachable):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.tagName"))
        outlined = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outlined) != "none"
    assert "SUMMARY" in names
    assert "BODY" not in names
    page.evaluate("document.querySelector('#layers summary').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#layers details').open")
    # the way past the links, for those who press a key for each
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_told_apart(visit: Any, scheme: str) -> None:
    page = visit("passing/report.html", color_scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}[scheme]


def test_what_a_page_shows_is_readable(visit: Any) -> None:
    for scheme in ("light", "dark"):
        page = visit("failing/report.html", color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        worst = page.evaluate("""() => {
            const parts = c => c.match(/[0-9.]+/g).map(Number);
            const light = c => parts(c).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = e => {
                const c = getComputedStyle(e).backgroundColor;
                const seen = parts(c).length < 4 || parts(c)[3] > 0;
                return seen ? c : e.parentElement ? ground(e.parentElement) : 'rgb(255,255,255)';
            };
            let worst = 21;
            const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            for (const e of document.querySelectorAll('body *:not(svg *)')) {
                if (!own(e) || !e.checkVisibility()) continue;
                const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
                worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
            }
            return worst;
        }""")
        assert worst >= 4.5


def test_it_prints(visit: Any) -> None:
    page = visit("passing/report.html", 720)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.verdict')).display") != "none"
    assert page.pdf(format="A4").startswith(b"%PDF")
