"""The site builds without a warning, and reading it asks nobody for anything."""

import importlib.util
import os
import subprocess
import sys
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


def test_pages_ask_for_nothing_and_stay_within_a_phone(site: Path, tmp_path: Path) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium")
    with browser(chromium, tmp_path / "profile") as page:
        for name in PAGES:
            for width, is_dark in ((1280, False), (390, True)):
                page.open(site / name, width=width, is_dark=is_dark)
                assert page.complaints() == [], name
                assert [url for url in page.requests() if not url.startswith(site.as_uri())] == [], name
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width}"
