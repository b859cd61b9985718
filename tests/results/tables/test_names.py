"""Names are cut, wrapped and broken between words; no text is lost and none becomes markup."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from lowrank_bench.results.tables.names import breakable, pieces, shorten, shorten_all, whole, wrap

LABEL = "Calibrated_with_the_training_data_of_the_task_itself_more_60"
NAMES = st.text(alphabet="ab_-.:=, <&%é\N{HANGUL SYLLABLE GA}()", max_size=120)


@given(NAMES)
def test_pieces_are_the_text(text):
    assert "".join(pieces(text)) == text
    assert all(re.fullmatch(r"[^_\-.:=, &(]*[_\-.:=, &(]*", piece) for piece in pieces(text))


@given(NAMES, st.integers(10, 60))
def test_lines_are_whole_pieces(text, width):
    lines = wrap(text, width).split("\n")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:
        assert len(line) <= width or len(pieces(line)) == 1


@given(NAMES, st.integers(30, 80))
def test_a_short_name_begins_and_ends_like_the_whole_one(text, length):
    short = shorten(text, length)
    assert len(short) <= length
    if short != text:
        head, tail = short.split(" … ")[0], short.split(" … ")[-1]
        assert text.startswith(head)
        assert text.endswith(tail)


@given(NAMES)
def test_pages_show_the_same_text(text):
    for filtered in (breakable(text), breakable(text, 31), whole(text)):
        assert Markup(filtered).replace("<wbr>", "").striptags() == Markup.escape(text).striptags()


def test_words_stay_whole():
    assert shorten(LABEL, 40) == "Calibrated_with_ … itself_more_60"
    assert wrap(LABEL, 34) == "Calibrated_with_the_training_data_\nof_the_task_itself_more_60"
    assert str(breakable("svd " + LABEL)).startswith("svd Calibrated_<wbr>with_<wbr>the_<wbr>")
    assert breakable("toy-math") == "toy-math"
    assert str(breakable("<b>" + LABEL)).startswith("&lt;b&gt;Calibrated_")


def test_a_short_parenthesis_is_one_piece():
    assert whole("accuracy (strict), %, n = 4") == 'accuracy <span class="whole">(strict), %</span>, n = 4'
    assert "span" not in str(whole("p (McNemar, exact over 40 problems or windows)"))
    assert whole("(<b>)") == '<span class="whole">(&lt;b&gt;)</span>'


@given(st.lists(NAMES, max_size=6), NAMES, NAMES, st.integers(30, 80))
def test_different_names_stay_different(middles, head, tail, length):
    texts = [head + middle + tail for middle in middles]
    short = shorten_all(texts, length)
    assert list(short) == list(dict.fromkeys(texts))
    assert len(set(short.values())) == len(short)
    assert all(len(shown) <= length or shown == text for text, shown in short.items())


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (("svd:policy=greedy", "bs"), ("svd:policy=greedy", "bs")),
        (
            tuple(f"{'calibrated_on_' * 4}{n}_samples_{'of_the_task_' * 4}" for n in (128, 256)),
            tuple(f"calibrat … {n}_ … task_of_the_task_" for n in (128, 256)),
        ),
        (
            tuple(f"{'x' * 60}{letter}{'x' * 60}" for letter in "ab"),
            tuple(f"{'x' * 8} … {letter}{'x' * 7} … {'x' * 18}" for letter in "ab"),
        ),
        (tuple("x" * count for count in (60, 61)), (f"{'x' * 8} … {'x' * 18}", f"{'x' * 8} … x … {'x' * 18}")),
        (tuple("x" * 50 + c + "y" * 20 + d + "z" * 30 for c in "ab" for d in "ab"), None),
    ],
)
def test_names_that_differ_in_the_middle_show_where(texts, shown):
    assert tuple(shorten_all(texts, 40).values()) == (shown or texts)
