"""The page in a real browser: draws, toggles, tells values, fits a phone, prints; fetches nothing, no complaints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_dpop.report import write_report
from megatron_dpop.report.text import number
from tests.megatron_dpop.report.chromium import Browser, browser, find_chromium
from tests.megatron_dpop.report.runs import metrics, write_run

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian package: chromium)"),
]
LARGE = "document.querySelector('.chart.large')"
LINES = f"{LARGE}.querySelectorAll('.plot path').length"
CLIPPED = f"""[...{LARGE}.querySelectorAll('text')].filter(text => {{
    const [t, p] = [text.getBoundingClientRect(), text.closest('.plot').getBoundingClientRect()];
    return t.left < p.left - 1 || t.right > p.right + 1 || t.top < p.top - 1 || t.bottom > p.bottom + 1;
}}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "dpo", loss="dpo", end=-6.1), write_run(folder / "dpop", end=1.8)]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


def _centre(chrome: Browser, element: str) -> tuple[float, float]:
    script = (
        f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
    )
    box: list[float] = chrome.evaluate(script + " return [r.left + r.width / 2, r.top + r.height / 2]; })()")
    return box[0], box[1]


def _click(chrome: Browser, element: str) -> None:
    chrome.click(*_centre(chrome, element))
    chrome.wait_for_frame()


@pytest.mark.parametrize("width", [1200, 800, 360])
@pytest.mark.parametrize("is_dark", [False, True])
def test_draws_everything_without_a_complaint(chrome: Browser, page: Path, width: int, is_dark: bool) -> None:
    chrome.open(page, width=width, is_dark=is_dark)
    assert chrome.complaints() == []
    assert chrome.requests() == [page.resolve().as_uri()]
    assert chrome.evaluate(LINES) == 2
    assert chrome.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out sideways
    drawn = "[...document.querySelectorAll('main > section .plot')].every(p => p.querySelectorAll('path').length >= 2)"
    assert chrome.evaluate(drawn)
    assert chrome.evaluate(f"{LARGE}.querySelectorAll('circle.ring').length") == 4
    assert chrome.evaluate(CLIPPED) == []


def test_long_names_are_cut_to_fit_a_phone(chrome: Browser, tmp_path: Path) -> None:
    names = ("baseline-dpo-lr-5e-4", "candidate-dpop-lr-5e-4")
    write_report([write_run(tmp_path / name, end=-123.4) for name in names], tmp_path / "report.html")
    chrome.open(tmp_path / "report.html", width=360)
    assert chrome.evaluate(CLIPPED) == []
    assert chrome.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_is_dark_and_light_is_light(chrome: Browser, page: Path) -> None:
    light_of = (
        "getComputedStyle(document.body)['background-color'].match(/\\d+/g).reduce((sum, c) => sum + Number(c), 0)"
    )
    chrome.open(page, is_dark=False)
    light = chrome.evaluate(light_of)
    chrome.open(page, is_dark=True)
    assert chrome.evaluate(light_of) < 150 < 600 < light


def test_legend_toggles_a_run_in_every_chart_and_back(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    before = chrome.evaluate(f"{LARGE}.querySelector('.plot').innerHTML")
    assert "\N{MINUS SIGN}4" in chrome.evaluate(f"[...{LARGE}.querySelectorAll('text')].map(t => t.textContent)")
    button = "document.querySelector('.legend button[data-series=\"run 0\"]')"
    _click(chrome, button)
    assert chrome.evaluate(LINES) == 1
    assert chrome.evaluate("document.querySelectorAll('.chart.small')[2].querySelectorAll('path').length") == 1
    states = "[...document.querySelectorAll('button[data-series=\"run 0\"]')].map(b => b.getAttribute('aria-pressed'))"
    assert chrome.evaluate(states) == ["false", "false"]  # both legends
    labels = chrome.evaluate(f"[...{LARGE}.querySelectorAll('text')].map(t => t.textContent)")
    assert not any(label.startswith("dpo ") for label in labels)
    assert "\N{MINUS SIGN}4" not in labels  # the axis fits what is left
    _click(chrome, button)
    assert chrome.evaluate(f"{LARGE}.querySelector('.plot').innerHTML") == before


def test_legend_toggles_train_and_validation(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    _click(chrome, "document.querySelector('button[data-series=\"split train\"]')")
    assert chrome.evaluate(f"{LARGE}.querySelectorAll('circle.ring').length") == 4
    assert chrome.evaluate(f"{LARGE}.querySelectorAll('path.train').length") == 0
    _click(chrome, "document.querySelector('button[data-series=\"split validation\"]')")
    assert "Nothing selected" in chrome.evaluate(f"{LARGE}.querySelector('.plot').textContent")
    chrome.move_mouse(*_centre(chrome, f"{LARGE}.querySelector('.plot')"))
    assert chrome.complaints() == []


def test_pointer_and_keys_tell_the_values(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    tooltip = "document.querySelector('.tooltip')?.textContent ?? null"
    chrome.move_mouse(*_centre(chrome, f"{LARGE}.querySelector('.plot svg')"))
    shown = chrome.evaluate(tooltip)
    assert shown.startswith("Step ")
    assert "dpotrain" in shown
    assert "dpoptrain" in shown
    chrome.move_mouse(1, 1)
    assert chrome.evaluate(tooltip) is None
    chrome.evaluate(f"{LARGE}.querySelector('.plot').focus()")
    chrome.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert chrome.evaluate(tooltip) == f"Step 20dpovalidation{number(-6.1)}dpopvalidation+1.80"
    chrome.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert chrome.evaluate(tooltip) is None
    assert chrome.complaints() == []


def test_a_touch_tells_the_values_until_the_next_one(chrome: Browser, page: Path) -> None:
    chrome.open(page, width=360)
    x, y = _centre(chrome, f"{LARGE}.querySelector('.plot svg')")
    chrome.tap(x, y)
    assert chrome.evaluate("document.querySelector('.tooltip').textContent").startswith("Step ")
    chrome.tap(*_centre(chrome, f"{LARGE}.querySelector('h3')"))
    assert chrome.evaluate("document.querySelector('.tooltip')") is None


def test_a_line_joins_validations_only_where_they_are_many(chrome: Browser, tmp_path: Path) -> None:
    """Between two it would read as a trend that nobody measured."""
    for every, joined in ((20, False), (10, False), (5, True)):
        run = write_run(tmp_path / f"every-{every}", rows=metrics(20, end=1.8, validate_every=every))
        write_report([run], tmp_path / "report.html")
        chrome.open(tmp_path / "report.html")
        assert chrome.evaluate("document.querySelectorAll('path.validation').length > 0") == joined
        assert chrome.evaluate("document.querySelectorAll('.legend .key [stroke-dasharray]').length > 0") == joined
        assert chrome.evaluate(f"{LARGE}.querySelectorAll('circle.ring').length") == 20 // every + 1


def test_more_curves_are_drawn_when_opened(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    assert not chrome.evaluate("document.querySelector('.more-charts .chart').checkVisibility()")
    _click(chrome, "document.querySelector('.more-charts summary')")
    chrome.wait_for_frame()
    charts = "[...document.querySelectorAll('.more-charts .chart')]"
    assert chrome.evaluate(f"{charts}.length") == 9
    assert chrome.evaluate(f"{charts}.every(c => c.checkVisibility() && c.querySelectorAll('path').length >= 2)")
    overflow = f"{charts}.map(c => c.querySelector('svg').getBoundingClientRect().width - c.clientWidth)"
    assert all(width < 0 for width in chrome.evaluate(overflow))


def test_prints_every_part_and_restores_the_screen(chrome: Browser, page: Path, tmp_path: Path) -> None:
    chrome.open(page, is_dark=True)
    before = chrome.evaluate("document.querySelector('main').innerHTML")
    chrome.print_pdf(tmp_path / "report.pdf")
    chrome.wait_for_frame()
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 4 <= pdf.count(b"/Type /Page\n") <= 9
    assert chrome.evaluate("document.querySelector('main').innerHTML") == before
    assert chrome.complaints() == []


def test_broken_and_long_runs_are_drawn(chrome: Browser, tmp_path: Path) -> None:
    gaps = [{"step": s, "loss": float("nan") if s % 3 else 1.0 + s, "never": float("inf")} for s in range(12)]
    runs = [
        write_run(tmp_path / "gaps", rows=gaps),
        write_run(tmp_path / "one-step", rows=metrics(20, end=1.0)[:1]),
        write_run(tmp_path / ("a-very-long-name-of-a-run-" * 4), steps=3000, rows=metrics(3000, end=-40.0)),
        *(write_run(tmp_path / f"run-{at}", end=at - 4) for at in range(9)),
    ]
    write_report(runs, tmp_path / "report.html")
    for width in (1200, 360):
        chrome.open(tmp_path / "report.html", width=width)
        assert chrome.complaints() == []
        assert chrome.evaluate("document.documentElement.scrollWidth") == width
    assert "NaN" not in chrome.evaluate("document.querySelector('main').innerHTML")
    assert "No finite values" in chrome.evaluate(
        "(document.querySelector('.more-charts').open = true, new Promise(done => setTimeout(() => "
        "done(document.querySelector('#chart-never').textContent), 200)))"
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("linearTicks(-6.5, 2.4, 7).values", [-6, -4, -2, 0, 2]),
        ("linearTicks(0, 1, 4).values", [0, 0.5, 1]),
        ("linearTicks(0, 3, 10, 1).values", [0, 1, 2, 3]),
        ("logTicks(0.9, 1100, 4)", [1, 10, 100, 1000]),
        ("logTicks(1, 12, 4)", [1, 2, 5, 10]),
        ("logTicks(3, 900, 4)", [3, 10, 30, 100, 300]),
        ("logTicks(1e-9, 1e9, 4)", [1e-8, 1e-4, 1, 1e4, 1e8]),
        ("extent([3, 3], {zero: false})", [2.7, 3.3]),
        ("extent([0, 0], {zero: true})", [0, 1]),
        ("extent([0.2, 0.8], {percent: true})", [0, 1]),
        ("[0, 0.5, 1].map(v => formatTick(v, 0.5, 'percent'))", ["0%", "50%", "100%"]),
        ("[-0.5, 1e-17, 0.5].map(v => formatTick(v, 0.5, 'number'))", ["\N{MINUS SIGN}0.5", "0", "0.5"]),
        ("[0, 2e-5].map(v => formatTick(v, 2e-5, 'number'))", ["0", "2e\N{MINUS SIGN}5"]),
        ("formatStep(25000)", "25k"),
    ],
)
def test_ticks(chrome: Browser, page: Path, call: str, expected: Any) -> None:
    if not chrome.evaluate("typeof linearTicks === 'function'"):
        chrome.open(page)
    found = chrome.evaluate(call)
    close = isinstance(expected, list) and isinstance(expected[0], int | float)
    assert found == (pytest.approx(expected) if close else expected)


def test_script_and_tables_write_numbers_alike(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    values = [0, 0.00004, 0.0123, 0.104, 1.8, 99.97, 126.44, 6402.04, 2.5e9, -6.104, -0.00004, -126.44, 54321.9]
    for style in ("number", "percent"):
        for signed in (False, True):
            for value in values if style == "number" else (0, 0.5, 0.84375, 1, -0.0001):
                script = f"formatValue({value!r}, {style!r}, {'true' if signed else 'false'})"
                assert chrome.evaluate(script) == number(value, style=style, signed=signed), script
