"""Changes by chance: to bytes, to text, and to trees of JSON and YAML."""

import copy
import json
from random import Random
from typing import Any

WORDS = (
    *("", " ", "\0", "\ud800", "\N{RIGHT-TO-LEFT OVERRIDE}x", "../../etc/passwd", "/", "~", "none", "null", "{{"),
    *("{% if", "a/b", "-1", "1e400", "2020-13-45", "!!python/object/apply:os.system [x]", "\x1b[31m", "x" * 5000),
    *("fp8", "nan", "release"),
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 3, 7, 64, 2**31, 2**63, 10**9, 10**15, 10**400, -(10**9), 0.5, -0.0, 1e-300, 1e308)
LIMITS = (float("inf"), float("-inf"), float("nan"))


def nested(draw: Random, depth: int) -> Any:
    value: Any = draw.choice(NUMBERS)
    for _ in range(depth):
        value = [value] if draw.random() < 0.5 else {draw.choice(("a", "path", "0")): value}
    return value


def value(draw: Random) -> Any:
    """Something of another kind than what is wanted, more often than not."""
    kind = draw.randrange(9)
    if kind == 0:
        return draw.choice((None, True, False))
    if kind in (1, 2):
        return draw.choice(NUMBERS)
    if kind == 3:
        return draw.choice(LIMITS)
    if kind in (4, 5):
        return draw.choice(WORDS)
    if kind == 6:
        return [value(draw) for _ in range(draw.randrange(3))]
    if kind == 7:
        return {str(draw.choice(WORDS)): value(draw) for _ in range(draw.randrange(3))}
    return nested(draw, draw.choice((2, 60, 900)))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if len(path) > 8:
        return found
    if isinstance(tree, dict):
        for key, part in tree.items():
            found += places(part, (*path, key))
    elif isinstance(tree, list):
        for at, part in enumerate(tree[:50]):
            found += places(part, (*path, at))
    return found


def tree(original: Any, draw: Random) -> Any:
    """A copy in which one to three values were replaced, removed, added, or moved under another name."""
    changed = copy.deepcopy(original)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = places(changed)
        if not found:
            return value(draw)
        *above, last = draw.choice(found)
        holder = changed
        for key in above:
            holder = holder[key]
        action = draw.randrange(6)
        if action < 3:
            holder[last] = value(draw)
        elif action == 3:
            del holder[last]
        elif isinstance(holder, dict):
            name = str(draw.choice(WORDS)) if action == 4 else f"{last}_"
            holder[name] = holder[last] if draw.random() < 0.5 else value(draw)
        else:
            holder.append(value(draw))
    return changed


def as_json(tree_: Any) -> bytes:
    return json.dumps(tree_).encode("utf-8", "surrogatepass")


def data(original: bytes, draw: Random) -> bytes:
    """Bytes flipped, cut, doubled, removed, or written over."""
    changed = bytearray(original)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(changed) + 1)
        action = draw.randrange(6)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif action == 1:
            del changed[at:]
        elif action == 2:
            del changed[at : at + draw.randrange(1, 40)]
        elif action == 3:
            changed[at:at] = draw.randbytes(draw.randrange(1, 20))
        elif action == 4:
            changed[at : at + 8] = draw.choice((b"\xff" * 8, bytes(8), b"\x00\x00\x00\x80\0\0\0\0"))
        else:
            changed[at:at] = changed[at : at + draw.randrange(1, 200)]
    return bytes(changed)
