"""The format between judge and candidate: exact for plain data, harmless for anything else."""

import collections
import contextlib
import itertools
import math
from array import array
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.evals.grading.sandbox.wire import MAX_DEPTH, MAX_MESSAGE_BYTES, Opaque, WireError, decode, encode

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=4) | st.tuples(inner),
    max_leaves=10,
)


def typed(value):
    return type(value), repr(value)


@given(VALUES)
def test_plain_data_come_back_equal_and_of_the_same_type(value):
    result = decode(encode(value))
    assert result == value
    assert type(result) is type(value)
    if isinstance(value, (int, float, str, list, tuple)):
        assert typed(result) == typed(value) or isinstance(value, (list, tuple))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_wire_error(data):
    with contextlib.suppress(WireError):
        decode(data)


@given(VALUES, st.data())
def test_changed_bytes_are_a_value_or_a_wire_error(value, data):
    changed = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    with contextlib.suppress(WireError):
        decode(bytes(changed[: len(changed) - cut]))


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ([n / 2 + 1 for n in range(1_000_000)], 8.1e6),
        ([list(point) for point in itertools.product(*[(n - 1, n, n + 1) for n in range(9)])], 2.5e5),
        ([1, 3] + [n / 2 + 1 if n % 2 else n for n in range(300_000)], 4e6),
    ],
)
def test_large_values_stay_small(value, most):
    """Half as much as one text a number takes, and far below the limit."""
    data = encode(value)
    assert decode(data) == value
    assert len(data) < most < MAX_MESSAGE_BYTES


def test_integers_of_all_sizes_side_by_side():
    value = [sign * 2**power + change for power in range(130) for sign in (1, -1) for change in (-1, 0, 1)]
    assert decode(encode(value)) == value
    assert decode(encode([value[:1], value, []])) == [value[:1], value, []]


def test_numbers_are_exact():
    assert math.isnan(decode(encode(float("nan"))))
    assert math.copysign(1, decode(encode(-0.0))) == -1
    assert decode(encode(7**20000)) == 7**20000
    assert decode(encode(True)) is True


def test_library_values_that_tests_compare():
    for value in (collections.deque([1, 2]), Decimal("1.10"), Fraction(1, 3), range(1, 9, 2), array("i", [1, 2])):
        assert decode(encode(value)) == value
    assert decode(encode(collections.Counter("aab"))) == {"a": 2, "b": 1}
    assert list(decode(encode(x * x for x in range(3)))) == [0, 1, 4]
    assert decode(encode({1: 2}.keys())) == {1}
    assert decode(encode({1: 2}.items())) == {(1, 2)}


def test_subclasses_lose_their_behaviour():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

        def __index__(self):
            return 99

        def __add__(self, other):
            return 99

    class LiarList(list):
        def __iter__(self):
            return iter([1, 2, 3])

        def __len__(self):
            return 3

    assert type(decode(encode(Liar(7)))) is int
    assert decode(encode(Liar(7))) == 7
    assert decode(encode(Liar(7))) != 8
    assert decode(encode(LiarList([5]))) == [5]


def test_other_objects_equal_nothing():
    value = decode(encode(object()))
    assert isinstance(value, Opaque)
    assert value != value
    assert value != 0


def test_limits():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(WireError, match="nested"):
        encode(deep)
    with pytest.raises(WireError, match="MiB"):
        encode(b"x" * (17 << 20))
    for data in (b"", b"liq", b"liq" + (1 << 40).to_bytes(8, "little") + b"c", b"*\xff\x01cN", b"lfc", b"iq", b"cX"):
        with pytest.raises(WireError):
            decode(data)


def test_an_opaque_object_can_be_refused():
    for value in (object(), [1, {2: [object()]}], (test_limits,), {"a": {object()}}):
        assert encode(value)
        with pytest.raises(WireError, match="an object of type"):
            encode(value, opaque=False)
    assert decode(encode([1, {2: ["x"]}], opaque=False)) == [1, {2: ["x"]}]
