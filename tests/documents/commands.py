"""Command lines that the documents show: every fenced bash or console block of README.md and docs/."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
_PROJECT_S = ("megatron-dpop", "checkpoint-convert")


@dataclass(frozen=True)
class Command:
    document: Path
    words: tuple[str, ...]
    assignments: tuple[str, ...]  # that stand before it: JOB_NODES=4
    output_is_checked: bool  # a console block of a document that tests/test_documented_output.py compares

    @property
    def line(self) -> str:
        return shlex.join(self.words)

    def __str__(self) -> str:
        return f"{self.document.name}: {self.line}"


def blocks(document: Path, *languages: str) -> Iterator[str]:
    for block in _BLOCK.finditer(document.read_text(encoding="utf-8")):
        if block["language"] in languages:
            yield block["text"]


def documented_commands() -> list[Command]:
    """Each once a document, in order."""
    found = []
    for document in DOCUMENTS:
        for text in blocks(document, "bash", "sh", "shell"):
            found += [_command(document, words) for words in _split(text)]
        for text in blocks(document, "console"):
            shown = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
            found += [_command(document, words, output_is_checked=True) for words in _split(shown)]
    return list(dict.fromkeys(found))


def unmarked_commands() -> list[str]:
    """Lines of blocks without a language that are commands of this project: no test would see them."""
    return [
        f"{document.name}: {line}"
        for document in DOCUMENTS
        for text in blocks(document, "", "text")
        for line in text.splitlines()
        if line.removeprefix("$ ").startswith(_PROJECT_S)
    ]


def _split(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word and set(word) <= set("&|;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def _command(document: Path, words: list[str], *, output_is_checked: bool = False) -> Command:
    first = next((at for at, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    return Command(document, tuple(words[first:]), tuple(words[:first]), output_is_checked)
