"""The page of `analyze`: what it says, and in a real browser that its values are in reach of every hand."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dpop.analysis.page import SHOWN_CHARACTERS, write_analysis
from megatron_dpop.pages import series_colours
from megatron_dpop.report.text import MINUS
from tests.megatron_dpop.analysis.made_up import analysis
from tests.megatron_dpop.report.chromium import Browser, browser, find_chromium
from tests.tiny import write_tokenizer

CHROMIUM = find_chromium()
TOOLTIP = "document.querySelector('.tooltip')?.textContent ?? null"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_tokenizer(folder)
    write_analysis(analysis(), folder, folder / "tokens.html", samples=3)
    return folder / "tokens.html"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian package: chromium)")
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


def test_a_model_has_the_colour_of_its_loss_and_the_reference_is_grey(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    dpo, dpop = series_colours(["dpo", "dpop"])
    for name, colour in (("reference", "var(--reference)"), ("dpo", dpo), ("dpop", dpop)):
        found = set(re.findall(rf'style="--series: ([^"]+)"></i>{name}<', html))
        found |= set(re.findall(rf'class="line" style="--series: ([^"]+)"[^>]*><title>{name}<', html))
        assert found == {colour}


def test_a_prompt_that_is_not_shown_whole_says_so_and_unfolds(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    long, *short = re.findall(r'<(?:details|p) class="prompt">.*?</(?:details|p)>', html, re.DOTALL)
    beginning, characters, whole = re.fullmatch(
        r'<details class="prompt"><summary><span class="beginning">(.*)… </span>'
        r"<u>the whole prompt, (\d+) characters</u></summary>(.*)</details>",
        long,
        re.DOTALL,
    ).groups()
    assert whole.startswith(beginning)
    assert len(beginning) == SHOWN_CHARACTERS < len(whole) == int(characters)
    assert len(short) == 2
    assert not any("…" in one or "<summary>" in one for one in short)
    style = html.split("</style>")[0]
    (rule,) = re.findall(r"\.prompt \{([^}]*)\}", style)
    assert "overflow: " not in rule
    assert "height" not in rule


def test_every_chart_has_its_numbers_as_a_table(page: Path) -> None:
    figures = re.findall(r"<figure.*?</figure>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        rows = re.findall(r'<th scope="row">.*?</tr>', figure)
        assert len(rows) == (6 if "a dot for each pair" in figure else 2)
        assert all(re.search(rf"<td>[{MINUS}+\d.]+</td>", row) for row in rows)
    assert figures[0].count(f"<td>{MINUS}0.50</td>") == figures[0].count("<td>")  # both models, at every position


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 800, 360])
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_fits_and_its_legend_shows_the_colours_of_its_tokens(
    chrome: Browser, page: Path, width: int, is_dark: bool
) -> None:
    chrome.open(page, width=width, is_dark=is_dark)
    assert chrome.complaints() == []
    assert chrome.requests() == [page.resolve().as_uri()]
    assert chrome.evaluate("document.documentElement.scrollWidth") == width
    sizes = "[...document.querySelectorAll('.charts text')].map(t => t.getBoundingClientRect().height)"
    assert min(chrome.evaluate(sizes)) >= 11  # pixels: still read on a phone
    # A token at full colour has its legend's, which is told from the page and read in the page's ink.
    for kind in ("up", "down", "plain"):
        colour = f"""(() => {{
            const token = document.querySelector('.tokens span').cloneNode();
            token.className = '{kind}'; token.style.setProperty('--p', 100);
            document.querySelector('.tokens').append(token);
            const found = getComputedStyle(token).backgroundColor; token.remove();
            return [found, getComputedStyle(document.querySelector('.key-token.{kind}')).backgroundColor];
        }})()"""
        token, legend = chrome.evaluate(colour)
        assert token == legend, kind
        assert chrome.evaluate(CONTRAST % f"document.querySelector('.key-token.{kind}')") >= 4.5, kind
    legend = chrome.evaluate("document.querySelector('.key-token.plain').parentElement.textContent")
    assert "darker" not in legend  # on a dark page the unlikely ones are the lighter
    chrome.press("Escape")


# Of an element's text on its own background over the page's (WCAG).
CONTRAST = """((element) => {
    const pen = new OffscreenCanvas(1, 1).getContext('2d');
    const pixel = (...colours) => {
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
    };
    const page = getComputedStyle(document.body).backgroundColor;
    const style = getComputedStyle(element);
    const both = [pixel(page, style.backgroundColor), pixel(style.color)].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
})(%s)"""


@pytest.mark.slow
def test_values_are_in_reach_of_mouse_touch_and_keyboard(chrome: Browser, page: Path) -> None:
    chrome.open(page, width=360)
    place = """(() => { const t = document.querySelectorAll('.tokens')[1].children[2];
        t.scrollIntoView({block: 'center'}); const r = t.getClientRects()[0];
        return [r.left + r.width / 2, r.top + r.height / 2]; })()"""
    x, y = chrome.evaluate(place)
    said = chrome.evaluate("document.querySelectorAll('.tokens')[1].children[2].dataset.value")
    assert re.fullmatch(rf"{MINUS}\d\.\d\d, reference {MINUS}\d\.\d\d: {MINUS}0\.50 nats", said)
    chrome.tap(x, y)
    assert chrome.evaluate(TOOLTIP).endswith(said)
    box = chrome.evaluate(
        "(() => { const r = document.querySelector('.tooltip').getBoundingClientRect();"
        " return [r.left, r.right, r.top]; })()"
    )
    assert box[0] >= 0
    assert box[1] <= 360
    assert box[2] > y
    chrome.tap(5, 5)
    assert chrome.evaluate(TOOLTIP) is None
    chrome.move_mouse(x, y)
    assert chrome.evaluate(TOOLTIP).endswith(said)
    chrome.move_mouse(1, 1)
    chrome.evaluate("document.querySelectorAll('.tokens')[1].focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        chrome.press(key)
    assert chrome.evaluate(TOOLTIP).endswith(said)
    chrome.press("End")
    chrome.press("ArrowRight")
    last = "document.querySelectorAll('.tokens')[1].lastElementChild.dataset.value"
    assert chrome.evaluate(TOOLTIP).endswith(chrome.evaluate(last))
    chrome.press("Escape")
    assert chrome.evaluate(TOOLTIP) is None
    summaries = "[...document.querySelectorAll('summary')].every(s => s.tabIndex === 0)"
    assert chrome.evaluate(summaries)
    assert chrome.complaints() == []
