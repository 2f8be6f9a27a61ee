"""The site builds without a warning, and reading it asks nobody else for anything."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.commands import ROOT
from tests.megatron_dpop.report.chromium import browser, find_chromium

pytestmark = pytest.mark.slow
PAGES = ("index.html", "plan.html", "losses.html", "reference/config.html", "reference/commands.html")


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
    """The site as a server gives it: from the disk a browser reads no search index."""
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
