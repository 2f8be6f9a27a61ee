"""Documents show what commands print."""

from pathlib import Path

import pytest
from refresh_docs import BLOCK, DOCUMENTS, PAGES, output_of

BLOCKS = [(document, block["words"], block["output"]) for document in DOCUMENTS
          for block in BLOCK.finditer(document.read_text(encoding="utf-8"))]  # fmt: skip


@pytest.mark.parametrize(("document", "words", "shown"), BLOCKS, ids=[words for _, words, _ in BLOCKS])
def test_document_shows_what_the_command_prints(document: Path, words: str, shown: str) -> None:
    assert output_of(words) == shown, f"{document.name} is out of date: python tools/refresh_docs.py"


def test_there_are_commands_to_check() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_reference_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path](), f"{path} is out of date: python tools/refresh_docs.py"
