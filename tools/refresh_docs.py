"""Writes what documents say of the code as it is today: commands' output, and the pages of docs/reference/.

python tools/refresh_docs.py            # every ```console block of docs/plan.md, and docs/reference/*.md
"""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

from reference_pages.commands_page import commands_page
from reference_pages.config_page import config_page
from reference_pages.metrics_page import metrics_page

from megatron_dpop.commands.main import run

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "docs" / "plan.md",)
PAGES = {
    ROOT / "docs" / "reference" / "commands.md": commands_page,
    ROOT / "docs" / "reference" / "config.md": config_page,
    ROOT / "docs" / "reference" / "metrics.md": metrics_page,
}
BLOCK = re.compile(r"```console\n\$ megatron-dpop (?P<words>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)


def output_of(words: str) -> str:
    """Standard output and error of `megatron-dpop WORDS`, run in the repository's root."""
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        run(shlex.split(words))
    return printed.getvalue()


def refreshed(text: str) -> str:
    """The document with every block's output as it is now."""
    return BLOCK.sub(
        lambda block: f"```console\n$ megatron-dpop {block['words']}\n{output_of(block['words'])}```", text
    )


def main() -> int:
    for document in DOCUMENTS:
        document.write_text(refreshed(document.read_text(encoding="utf-8")), encoding="utf-8")
        print(document)
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
