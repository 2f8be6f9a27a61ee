"""A look at a pickle before it is loaded, so that a small one can take neither hours nor gigabytes.

The unpickler itself is C and cannot be stopped: 130 bytes of tuples within tuples, each twice in the next, take it
2^60 steps to hash, and one number in a five-byte opcode makes it allocate a table of 32 GiB.
"""

import pickle
import pickletools

LARGEST_TUPLE = 1000  # objects in a tuple, those in its tuples counted each time that they occur

# By opcode: how its argument is coded, how many objects it takes from the stack, whether it takes those down to the
# last mark, and how many it leaves.
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINES = {"string": 1, "unicodestring": 1, "decimalnl_short": 1, "decimalnl_long": 1, "floatnl": 1}
_LINES |= {"stringnl": 1, "stringnl_noescape": 1, "unicodestringnl": 1, "stringnl_noescape_pair": 2}


def _describe(op: pickletools.OpcodeInfo) -> tuple[int, int, int, int, bool, int]:
    """(fixed bytes of the argument, bytes of its length, its lines, objects taken, down to a mark, objects left)."""
    argument = op.arg
    fixed = prefix = lines = 0
    if argument is not None:
        prefix = _LENGTHS.get(argument.n, 0)
        lines = _LINES.get(argument.name, 0)
        fixed = argument.n if not prefix and not lines else 0
    before = list(op.stack_before)
    to_mark = pickletools.markobject in before
    taken = before.index(pickletools.markobject) if to_mark else len(before)
    return fixed, prefix, lines, taken, to_mark, len(op.stack_after)


_OPS = {op.code.encode("latin-1")[0]: _describe(op) for op in pickletools.opcodes}
_CODE = {op.name: op.code.encode("latin-1")[0] for op in pickletools.opcodes}
_MARK, _STOP, _DUP, _POP = (_CODE[name] for name in ("MARK", "STOP", "DUP", "POP"))
_PUT = {_CODE["BINPUT"], _CODE["LONG_BINPUT"], _CODE["PUT"]}
_GET = {_CODE["BINGET"], _CODE["LONG_BINGET"], _CODE["GET"]}
_MEMOIZE = _CODE["MEMOIZE"]
_TUPLES = {_CODE[name] for name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")}
_SIGNED_LENGTHS = {_CODE["LONG4"], _CODE["BINSTRING"]}


def check_pickle(data: bytes) -> int:
    """
    Raises pickle.UnpicklingError for a pickle that is damaged, or whose loading would not be bounded by its size.
    Returns where it ends.
    """
    sizes: list[int] = []  # of the objects on the stack; 1 for what is no tuple
    marks: list[int] = []
    memo: dict[int, int] = {}
    position, end = 0, len(data)
    try:
        while True:
            code = data[position]
            fixed, prefix, lines, taken, to_mark, left = _OPS[code]
            start = position + 1
            position = start + fixed
            if prefix:
                position = start + prefix
                length = int.from_bytes(data[start:position], "little", signed=code in _SIGNED_LENGTHS)
                if not 0 <= length <= end - position:
                    raise pickle.UnpicklingError("it is cut short")
                position += length
            for _ in range(lines):
                position = data.index(b"\n", position) + 1
            if code == _STOP:
                return position
            if code == _MARK:
                marks.append(len(sizes))
            elif code == _POP and marks and marks[-1] == len(sizes):
                marks.pop()
            elif code == _DUP:
                sizes.append(sizes[-1])
            elif code in _PUT or code == _MEMOIZE:
                place = len(memo) if code == _MEMOIZE else _place(data, start, position, lines)
                if place > position:  # no pickler numbers what it has not written
                    raise pickle.UnpicklingError(f"it has a place {place} for an object")
                memo[place] = sizes[-1]
            elif code in _GET:
                sizes.append(memo[_place(data, start, position, lines)])
            else:
                inside = 0
                if to_mark:
                    mark = marks.pop()
                    inside = sum(sizes[mark:]) if code in _TUPLES else 0
                    del sizes[mark:]
                for _ in range(taken):
                    inside += sizes.pop()
                size = 1 + inside if code in _TUPLES else 1
                if size > LARGEST_TUPLE:
                    raise pickle.UnpicklingError(
                        "it holds tuples within tuples that unfold to more than any checkpoint's"
                    )
                sizes.extend([size] * left)
    except (IndexError, KeyError, ValueError):
        raise pickle.UnpicklingError("it is damaged or cut short") from None


def _place(data: bytes, start: int, end: int, lines: int) -> int:
    return int(data[start : end - 1]) if lines else int.from_bytes(data[start:end], "little")
