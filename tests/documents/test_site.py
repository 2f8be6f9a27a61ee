"""The site builds without a warning, reading it asks nobody else for anything, and its search works from the disk."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.commands import ROOT
from tests.megatron_dpop.report.chromium import Browser, browser, find_chromium

pytestmark = pytest.mark.slow
PAGES = (
    *("index.html", "plan.html", "losses.html", "gallery.html", "containers.html"),
    *("reference/config.html", "reference/commands.html"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs megatron-dpop[docs]")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing of each request."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site as a server gives it."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pages_ask_for_nothing_and_stay_within_a_phone(address: str, tmp_path: Path) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium")
    with browser(chromium, tmp_path / "profile") as page:
        for name in PAGES:
            for width, is_dark in ((1280, False), (390, True)):
                page.open(f"{address}/{name}", width=width, is_dark=is_dark)
                assert page.complaints() == [], name
                assert [url for url in page.requests() if not url.startswith(address)] == [], name
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width}"


@pytest.mark.parametrize("width", [1280, 390])
def test_search_finds_a_word_from_the_disk_and_from_a_server(
    site: Path, address: str, tmp_path: Path, width: int
) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium")
    with browser(chromium, tmp_path / "profile") as page:
        for start in (site.resolve().as_uri(), address):
            page.open(f"{start}/reference/metrics.html", width=width)
            page.click(*page.evaluate(OPENER))  # a phone has a button, a wide window the field itself
            page.type("interleaved")
            assert re.fullmatch(r"\d+ matching documents", _said(page)), start
            found = page.evaluate(f"[...document.querySelectorAll('{LINK}')].map(link => link.href)")
            assert f"{start}/parallel.html?h=interleaved" in found
            page.type("overtheworld")
            assert _said(page) == "No matching documents", start
            assert page.complaints() == []
            assert [url for url in page.requests() if not url.startswith(start)] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


LINK = ".md-search-result__link"
OPENER = """[...document.querySelectorAll('.md-header label[for="__search"], .md-search__input')].map(
    element => element.getBoundingClientRect()).filter(box => box.width && box.left >= 0).map(
    box => [box.left + box.width / 2, box.top + box.height / 2])[0]"""


def _said(page: Browser) -> str:
    """What the search says when it has said nothing new for half a second; the index is read on the first word."""
    script = """(async () => {
        const said = () => document.querySelector('.md-search-result__meta').textContent;
        for (let tries = 0, same = 0, last = ''; tries < 100 && same < 5; tries++) {
            await new Promise(done => setTimeout(done, 100));
            same = said() === last && /matching/.test(last) ? same + 1 : 0;
            last = said();
        }
        return said();
    })()"""
    said: str = page.evaluate(script)
    return said
