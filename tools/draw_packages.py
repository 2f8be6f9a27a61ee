"""Draws which package imports which, from the imports themselves: `python tools/draw_packages.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "packages.svg"

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 124, 30, 18, 46, 16


def packages() -> list[str]:
    inner = sorted(path.parent.name for path in (ROOT / "megatron_dpop").glob("*/__init__.py"))
    return ["dpop_base", "checkpoint_convert", *inner]


def imports(package: str) -> set[str]:
    """Returns the packages that a package imports, wherever in its files."""
    folder = ROOT / package if (ROOT / package).is_dir() else ROOT / "megatron_dpop" / package
    found = {name for path in folder.rglob("*.py") for name in _named(ast.parse(path.read_text(encoding="utf-8")))}
    return (found & set(packages())) - {package}


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            first, *rest = node.module.split(".")
            if first == "megatron_dpop":
                yield from rest[:1] or [alias.name for alias in node.names]
            else:
                yield first
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                yield from rest[:1] if first == "megatron_dpop" else [first]


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """Returns how many packages stand below each, one upon the other."""
    found: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((level(below) for below in edges[name]), default=-1)
        return found[name]

    return {name: level(name) for name in edges}


def without_detours(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns the imports that no chain of others implies: the picture's arrows."""

    def reached(name: str) -> set[str]:
        return edges[name] | {far for near in edges[name] for far in reached(near)}

    return {name: {to for to in below if not any(to in reached(via) for via in below)} for name, below in edges.items()}


def picture() -> str:
    edges = {name: imports(name) for name in packages()}
    at = levels(edges)
    rows = [[name for name in edges if at[name] == level] for level in range(max(at.values()) + 1)]
    width = max(len(row) for row in rows) * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for column, name in enumerate(row):
            place[name] = (
                left + column * (BOX_WIDTH + GAP_X),
                height - MARGIN - BOX_HEIGHT - level * (BOX_HEIGHT + GAP_Y),
            )
    arrows = [
        _arrow(place[name], place[below]) for name, drawn in without_detours(edges).items() for below in sorted(drawn)
    ]
    boxes = [_box(name, *place[name]) for name in edges]
    return "\n".join([HEAD.format(width=width, height=height), *arrows, *boxes, "</svg>", ""])


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" \
font-family="sans-serif" font-size="13">
<title>Which package imports which: arrows point at what is imported; what a chain implies is left out</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>"""


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    x1, y1 = above[0] + BOX_WIDTH / 2, above[1] + BOX_HEIGHT
    x2, y2 = below[0] + BOX_WIDTH / 2, below[1]
    bend = (y2 - y1) / 2
    path = f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="#99a" marker-end="url(#tip)"/>'


def _box(name: str, x: float, y: float) -> str:
    fill = "#fdf3d8" if (ROOT / name).is_dir() else "#e6effa"
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{fill}" stroke="#667"/>'
        f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + 20:g}" text-anchor="middle">{name}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE)
