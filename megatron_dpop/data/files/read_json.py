"""Rows of a JSON file, read as a stream: objects one a line, one behind the other, or in an array."""

import codecs
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from dpop_base.errors import UserError, first_line

from .compressed import file_suffix, open_bytes
from .located_row import LocatedRow

_CHUNK_BYTES = 1 << 20
_BLANK = " \t\r\n"
_WRAPPERS = ("data", "rows", "instances", "examples", "samples", "train")


def read_json(path: Path) -> Iterator[LocatedRow]:
    """Rows of JSON Lines, of an array of objects, of objects written over several lines, or of {"data": [...]}."""
    with open_bytes(path) as opened:
        file = _utf8(opened)
        head: list[bytes] = []
        for line in file:
            head.append(line)
            if line.removeprefix(codecs.BOM_UTF8).strip():
                break
        first = head[-1].removeprefix(codecs.BOM_UTF8).strip() if head else b""
        if _is_one_a_line(first, is_lines=file_suffix(path) != ".json"):
            yield from _whole_file_of(_lines(chain(head, file), path), path)
        else:
            yield from _stream(b"".join(head), file, path)


def _utf8(file: BinaryIO) -> BinaryIO:
    """The file, from UTF-16 where its first bytes say so."""
    start = cast(io.BufferedReader, file).peek(2)[:2]
    is_utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return cast(BinaryIO, codecs.EncodedFile(file, "utf-8", "utf-16")) if is_utf16 else file


def _is_one_a_line(first: bytes, *, is_lines: bool) -> bool:
    """Whether values stand one a line: the first line is an object, or the file's name says so and it is no array."""
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return is_lines and first not in (b"{", b"[") and not first.startswith(b"[{")
    is_array = isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)
    return isinstance(value, dict) or (is_lines and not is_array)


def _lines(lines: Iterator[bytes], path: Path) -> Iterator[LocatedRow]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"line {number}"
            yield where, _object(_parse(line.removeprefix(codecs.BOM_UTF8), path, where), path, where)


def _whole_file_of(rows: Iterator[LocatedRow], path: Path) -> Iterator[LocatedRow]:
    """The rows, or those of the list that the only one wraps (`{"data": [...]}`, LMFlow's `{"instances": [...]}`)."""
    first = next(rows, None)
    second = next(rows, None) if first else None
    if first is not None and second is None:
        name = next((name for name in _WRAPPERS if _is_wrapped(first[1], name)), None)
        if name is not None:
            yield from ((f"row {index} of `{name}`", row) for index, row in enumerate(first[1][name], 1))
            return
        if len(first[1]) > 1 and all(isinstance(value, list | dict) for value in first[1].values()):
            lengths = {len(value) for value in first[1].values()}
            texts = [value for value in first[1].values() if isinstance(value, list) and value]
            if len(lengths) == 1 and texts and all(isinstance(value[0], str) for value in texts):
                raise UserError(
                    f"{path}: holds one object of columns ({', '.join(first[1])}); write one object a row "
                    '(pandas: to_json(path, orient="records", lines=True))'
                )
    yield from (row for row in (first, second) if row is not None)
    yield from rows


def _is_wrapped(row: dict[str, Any], name: str) -> bool:
    value = row.get(name)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) for entry in value)
        and not any(isinstance(other, list | dict) for key, other in row.items() if key != name)
    )


def _parse(data: bytes, path: Path, where: str) -> Any:
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, {where}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, {where}: broken JSON ({error.msg}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, {where}: JSON that cannot be read ({first_line(error)})") from None


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where}: a JSON object is needed, not {type(value).__name__}")
    return value


def _stream(head: bytes, file: BinaryIO, path: Path) -> Iterator[LocatedRow]:
    values = _Values(head, file, path)
    if values.peek() == "[":
        yield from _numbered(values.elements(), path)
    else:
        yield from _whole_file_of(_numbered(values.concatenated(), path), path)


def _numbered(values: Iterator[Any], path: Path) -> Iterator[LocatedRow]:
    for number, value in enumerate(values, 1):
        yield f"row {number}", _object(value, path, f"row {number}")


class _Values:
    """JSON values of a file, decoded as they come; what is held is the text of one value and a chunk."""

    def __init__(self, head: bytes, file: BinaryIO, path: Path) -> None:
        self._decode_text = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._decoder = json.JSONDecoder()
        self._file, self._path = file, path
        self._text, self._at = "", 0
        self._bytes = self._lines_before = 0
        self._ended = False
        self._take(head)

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def concatenated(self) -> Iterator[Any]:
        while self.peek():
            yield self._value()

    def elements(self) -> Iterator[Any]:
        self._at += 1  # the bracket
        if self.peek() == "]":
            self._at += 1
        else:
            yield self._value()
            while (mark := self.peek()) == ",":
                self._at += 1
                self.peek()
                yield self._value()
            if mark != "]":
                raise self._broken("Expecting ',' delimiter", self._at)
            self._at += 1
        if self.peek():
            raise self._broken("Extra data", self._at)

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._broken(error.msg, error.pos) from None
                continue
            except (RecursionError, ValueError) as error:
                raise UserError(f"{self._path}: JSON that cannot be read ({first_line(error)})") from None
            if end == len(self._text) and self._more():
                continue  # a number may go on in the next chunk
            self._at = end
            return value

    def _more(self) -> bool:
        """Reads on, twice as much as is held, so that a long value is parsed few times."""
        if self._ended:
            return False
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        self._take(self._file.read(max(_CHUNK_BYTES, 2 * len(self._text))))
        return True

    def _take(self, data: bytes) -> None:
        self._ended = not data
        try:
            self._text += self._decode_text(data, self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes + error.start
            raise UserError(f"{self._path}, the whole file: not UTF-8 text at byte {place}; save it as UTF-8") from None
        self._bytes += len(data)

    def _broken(self, what: str, position: int) -> UserError:
        line = 1 + self._lines_before + self._text.count("\n", 0, position)
        column = position - self._text.rfind("\n", 0, position)
        return UserError(f"{self._path}, line {line}: broken JSON ({what}, column {column})")
