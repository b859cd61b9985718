"""Plain data between judge and candidate: a format that can only be read back as builtin values and numpy numbers.

Values are written in columns: what is alike is kept together, so a million numbers are one array, and a million lists
are their lengths and one column of all their items. Both directions then run in C, some tens of nanoseconds an item. A
message is a column of one value. A column of n values is a tag and a content of at least n bytes:

    c                  ``N``, ``T`` or ``F`` for each
    i h                an integer type code of `array` and the numbers; for larger ones a column of hexadecimal texts
    f j                doubles; pairs of doubles
    s x D              lengths and one text: strings, names of types that are no plain data (`Opaque`), decimals
    b y                lengths and one run of bytes: bytes, bytearrays
    l t S z I e k v m  lengths, one column of all items: list, tuple, set, frozenset, iterator, deque, views of a dict
    d                  lengths, one column of all keys, one of all values
    r Q                a column of three integers each (range), of two (fraction)
    a                  a column of pairs: type code and list
    g A                columns of numpy's data types, shapes and bytes: scalars, arrays
    *                  values of several kinds: how many kinds, the kind's number for each value, a column for each kind

An object of a subclass is written as its builtin base class, read through the base class's own methods. Anything else
becomes an `Opaque`, which equals nothing. Nothing that is slow is imported, because both ends start once per task at
the weakest level.
"""

from __future__ import annotations

import sys
from array import array
from itertools import accumulate, chain, islice

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per task
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_MESSAGE_BYTES = 16 << 20
MAX_DEPTH = 100
MAX_ITEMS = 1_000_000
"""Most items taken from an iterator."""
NUMPY_KINDS = "biufcUSmM"
"""Of numpy's scalars and arrays: numbers, truth values, texts, times. Objects and records are no plain data."""


class WireError(Exception):
    """The bytes are not a value, or a value is beyond the limits."""


class Opaque:
    """Takes the place of an object that is no plain data: equal to nothing, not iterable, of no value."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


_TAGS: dict[type, str] = {
    **{type(None): "c", bool: "c", int: "i", float: "f", complex: "j", str: "s", bytes: "b", bytearray: "y"},
    **{list: "l", tuple: "t", set: "S", frozenset: "z", dict: "d", range: "r"},
    **{type({}.keys()): "k", type({}.values()): "v", type({}.items()): "m"},
}
_BASES: dict[str, Any] = {"l": list, "t": tuple, "S": set, "z": frozenset}
_CONSTANTS = {None: ord("N"), True: ord("T"), False: ord("F")}
_TEXT = ("utf-8", "surrogatepass")


def encode(value: Any, opaque: bool = True) -> bytes:
    """Write a value as bytes; raise `WireError` beyond the limits, and for an `Opaque` where that is not allowed."""
    return _Writer(opaque).encode(value)


class _Writer:
    def __init__(self, opaque: bool) -> None:
        self._opaque = opaque
        self._parts: list[bytes] = []
        self._size = 0

    def encode(self, value: Any) -> bytes:
        self._column([value], 0)
        return b"".join(self._parts)

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        self._check(self._size)
        self._parts.append(data)

    def _check(self, size: int) -> None:
        if size > MAX_MESSAGE_BYTES:
            raise WireError(f"value of more than {MAX_MESSAGE_BYTES >> 20} MiB")

    def _column(self, values: list[Any], depth: int) -> None:
        """Write values; the list may be changed."""
        if depth > MAX_DEPTH:
            raise WireError(f"value nested more than {MAX_DEPTH} deep")
        # The set of types costs one pass in C; only a column of several kinds is looked at value by value.
        tags = {_TAGS.get(kind, "") for kind in set(map(type, values))} or {"c"}
        if len(tags) == 1 and "" not in tags:
            self._alike(tags.pop(), values, depth)
            return
        of_each = [_TAGS.get(type(value), "") for value in values]
        for index, tag in enumerate(of_each):
            if not tag:
                of_each[index], values[index] = self._classify(values[index])
        groups: dict[str, list[Any]] = {tag: [] for tag in of_each}
        for tag, value in zip(of_each, values, strict=True):
            groups[tag].append(value)
        if len(groups) > 1:
            numbers = {tag: number for number, tag in enumerate(groups)}
            self._put(b"*" + bytes([len(groups)]) + bytes(map(numbers.__getitem__, of_each)))
        for tag, group in groups.items():
            self._alike(tag, group, depth)

    def _alike(self, tag: str, values: list[Any], depth: int) -> None:
        if tag == "i":
            self._integers(values, depth)
            return
        self._put(tag.encode())
        if tag == "c":
            self._put(bytes(map(_CONSTANTS.__getitem__, values)))
        elif tag == "f":
            self._put(array("d", values).tobytes())
        elif tag == "j":
            self._put(array("d", chain.from_iterable((value.real, value.imag) for value in values)).tobytes())
        # The lengths count characters and the text's own length counts bytes, so both are written.
        elif tag in "sxD":
            self._lengths(list(map(len, values)))
            self._blob("".join(values).encode(*_TEXT))
        elif tag in "by":
            self._lengths(list(map(len, values)))
            self._blob(b"".join(values))
        elif tag == "d":
            self._items(values, dict.__len__, dict.keys, depth)
            self._column(list(chain.from_iterable(map(dict.values, values))), depth + 1)
        elif tag in _BASES:
            self._items(values, _BASES[tag].__len__, _BASES[tag].__iter__, depth)
        elif tag in "Iekvm":
            self._items(values, len, iter, depth)
        elif tag == "r":
            self._column([part for value in values for part in (value.start, value.stop, value.step)], depth + 1)
        elif tag == "Q":
            self._column([part for value in values for part in (value.numerator, value.denominator)], depth + 1)
        elif tag == "a":
            self._column(values, depth + 1)
        else:
            for parts in zip(*values, strict=True):
                self._column(list(parts), depth + 1)

    def _integers(self, values: list[int], depth: int) -> None:
        for code in "bhiq":  # the smallest type that holds all of them, found by trying
            try:
                packed = array(code, values)
            except OverflowError:
                continue
            self._put(b"i" + code.encode() + packed.tobytes())
            return
        # Hexadecimal is linear in the length and exempt from Python's limit on the digits of a decimal text.
        self._put(b"h")
        self._column(list(map("%x".__mod__, values)), depth + 1)

    def _items(
        self, values: list[Any], length: Callable[[Any], int], items: Callable[[Any], Iterable[Any]], depth: int
    ) -> None:
        self._lengths(list(map(length, values)))
        self._column(list(chain.from_iterable(map(items, values))), depth + 1)

    def _lengths(self, lengths: list[int]) -> None:
        self._check(sum(lengths))  # before anything of that size is made; an item takes at least one byte
        self._integers(lengths, 0)

    def _blob(self, data: bytes) -> None:
        self._integers([len(data)], 0)
        self._put(data)

    def _classify(self, value: Any) -> tuple[str, Any]:
        """Return the tag of an object of no builtin type, and the value to be written under it."""
        kind = type(value)
        # Not imported: a value can be of numpy only where a program or test has imported it.
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray)):
            is_scalar = isinstance(value, numpy.generic)
            data = numpy.asarray(value) if is_scalar else numpy.ndarray.view(value, numpy.ndarray)
            if data.dtype.kind in NUMPY_KINDS:
                self._check(data.nbytes)
                return "g" if is_scalar else "A", (data.dtype.str, data.shape, data.tobytes())
        elif isinstance(value, int):
            return "i", int.__add__(value, 0)
        elif isinstance(value, float):
            # Adding 0.0 would make 0.0 of -0.0.
            return "f", float.__add__(value, -0.0)
        elif isinstance(value, complex):
            return "j", complex.__pos__(value)
        elif isinstance(value, str):
            return "s", str.encode(value, *_TEXT).decode(*_TEXT)
        elif isinstance(value, bytes):
            return "b", bytes.__getitem__(value, slice(None))
        elif isinstance(value, bytearray):
            return "y", bytes(memoryview(value))
        elif isinstance(value, dict):
            return "d", value
        return self._classify_other(value, kind)

    def _classify_other(self, value: Any, kind: type) -> tuple[str, Any]:
        for tag, base in _BASES.items():
            if isinstance(value, base):
                return tag, value
        # By name: importing these modules in order to compare types would be slow.
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == "collections.deque":
            return "e", list(value)
        if name == "array.array":
            return "a", (value.typecode, value.tolist())
        if name == "decimal.Decimal":
            return "D", str(value)
        if name == "fractions.Fraction":
            return "Q", value
        if name.startswith("sympy.core.numbers.") and isinstance(value, sys.modules["sympy"].Integer):
            return "i", int(value.p)
        if hasattr(kind, "__next__") and hasattr(kind, "__iter__"):
            items = list(islice(value, MAX_ITEMS + 1))
            if len(items) > MAX_ITEMS:
                raise WireError(f"iterator of more than {MAX_ITEMS:,} items")
            return "I", items
        if not self._opaque:
            raise WireError(f"an object of type {name[:200]}")
        return "x", name[:200]


def decode(data: bytes) -> Any:
    """Read one value; raise `WireError` for anything that `encode` does not write."""
    reader = _Reader(data)
    try:
        (value,) = reader.column(1, 0)
    except WireError:
        raise
    except Exception as error:  # bytes from an untrusted process: every failure to read them is the same failure
        raise WireError(f"malformed data ({type(error).__name__})") from None
    if reader.at != len(data):
        raise WireError("malformed data (bytes left over)")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes. What is left bounds every count: a value takes at least one."""
        if size < 0 or size > len(self.data) - self.at:
            raise WireError("malformed data (count)")
        self.at += size
        return self.data[self.at - size : self.at]

    def column(self, count: int, depth: int) -> list[Any]:
        """Return the values of a column."""
        if depth > MAX_DEPTH:
            raise WireError(f"value nested more than {MAX_DEPTH} deep")
        tag = self.take(1).decode("ascii")
        if tag != "*":
            return self._alike(tag, count, depth)
        (kinds,) = self.take(1)
        numbers = self.take(count)
        parts = [
            iter(self._alike(self.take(1).decode("ascii"), numbers.count(number), depth)) for number in range(kinds)
        ]
        return list(map(next, map(parts.__getitem__, numbers)))

    def _alike(self, tag: str, count: int, depth: int) -> list[Any]:
        # A value takes a byte at least: a count beyond the rest is a lie, found before memory is asked for.
        if count > len(self.data) - self.at:
            raise WireError("malformed data (count)")
        if tag == "c":
            return list(map({ord("N"): None, ord("T"): True, ord("F"): False}.__getitem__, self.take(count)))
        if tag == "i":
            return self._integers(count)
        if tag == "h":
            return [int(text, 16) for text in self.column(count, depth + 1)]
        if tag in "fj":
            parts = self._array("d", count if tag == "f" else 2 * count)
            return parts if tag == "f" else list(map(complex, parts[::2], parts[1::2]))
        if tag in "sxDby":
            return self._cut(tag, count)
        if tag in "ltSzIekvmd":
            return self._containers(tag, count, depth)
        if tag in "rQ":
            parts = self.column((3 if tag == "r" else 2) * count, depth + 1)
            if tag == "r":
                return list(map(range, parts[::3], parts[1::3], parts[2::3]))
            from fractions import Fraction

            return list(map(Fraction, parts[::2], parts[1::2]))
        if tag == "a":
            return [array(code, items) for code, items in self.column(count, depth + 1)]
        if tag in "gA":
            columns = [self.column(count, depth + 1) for _ in range(3)]
            return [_numpy(tag == "g", *parts) for parts in zip(*columns, strict=True)]
        raise WireError("malformed data (tag)")

    def _integers(self, count: int) -> list[int]:
        code = self.take(1).decode("ascii")
        if code not in "bhiq":
            raise WireError("malformed data (type code)")
        return self._array(code, count)

    def _array(self, code: str, count: int) -> list[Any]:
        numbers = array(code)
        numbers.frombytes(self.take(count * numbers.itemsize))
        return numbers.tolist()

    def _lengths(self, count: int) -> list[int]:
        if self.take(1) != b"i":
            raise WireError("malformed data (length)")
        lengths = self._integers(count)
        if lengths and (min(lengths) < 0 or sum(lengths) > len(self.data)):
            raise WireError("malformed data (count)")
        return lengths

    def _cut(self, tag: str, count: int) -> list[Any]:
        """Cut one text or run of bytes into values."""
        lengths = self._lengths(count)
        blob = self.take(*self._lengths(1))
        whole: Any = blob if tag in "by" else blob.decode(*_TEXT)
        if len(whole) != sum(lengths):
            raise WireError("malformed data (count)")
        ends = list(accumulate(lengths))
        parts = [whole[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        if tag == "D":
            from decimal import Decimal

            return list(map(Decimal, parts))
        make: Any = {"x": Opaque, "y": bytearray}.get(tag)
        return list(map(make, parts)) if make else parts

    def _containers(self, tag: str, count: int, depth: int) -> list[Any]:
        lengths = self._lengths(count)
        items = iter(self.column(sum(lengths), depth + 1))
        parts = (islice(items, length) for length in lengths)
        if tag == "d":
            values = iter(self.column(sum(lengths), depth + 1))
            pairs = zip(parts, (islice(values, length) for length in lengths), strict=True)
            return [dict(zip(keys, part, strict=True)) for keys, part in pairs]
        if tag == "I":
            return [iter(list(part)) for part in parts]
        if tag == "k":
            return [dict.fromkeys(part).keys() for part in parts]
        if tag == "v":
            return [dict(enumerate(part)).values() for part in parts]
        if tag == "m":
            return [dict(part).items() for part in parts]
        if tag == "e":
            from collections import deque

            return list(map(deque, parts))
        return list(map(_BASES[tag], parts))


def _numpy(is_scalar: bool, code: str, shape: tuple[int, ...], data: bytes) -> Any:
    """Return a number or an array of numpy from its data type, shape and bytes."""
    import numpy

    kind = numpy.dtype(code)
    if kind.kind not in NUMPY_KINDS or (is_scalar and shape != ()):
        raise WireError("malformed data (data type)")
    # A bytearray, because an array over bytes is read-only and a program or test may change it.
    values = numpy.frombuffer(bytearray(data), kind) if data else numpy.empty(0, kind)
    if kind.kind == "b":
        values = values.view("u1") != 0  # one byte each, of which only 0 and 1 are truth values
    return kind.type() if is_scalar and not data else values.reshape(shape)[()] if is_scalar else values.reshape(shape)
