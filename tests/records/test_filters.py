"""Conditions of --where: what they choose, and that nothing in them is ever run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import to_frame
from lowrank_bench.records.filters import filter_frame, parse_condition
from lowrank_bench.records.schema import COLUMNS


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("method=svd,bs", lambda r: r.method in ("svd", "bs")),
        ("method != svd", lambda r: r.method != "svd"),
        ("ratio_target>=2", lambda r: r.ratio_target >= 2),
        ("ratio_target < 3x", lambda r: r.ratio_target < 3),
        ("ratio_target=1.5, 3", lambda r: r.ratio_target in (1.5, 3)),
        ("seed=43", lambda r: r.seed == 43),
        ("value>0.3", lambda r: r.value > 0.3),
        ("headline=true", lambda r: True),
        ("evaluated_at>=2026-01-01", lambda r: True),
    ],
)
def test_a_condition_chooses_what_it_says(sweep, condition, expected):
    records = sweep(seeds=(42, 43))
    chosen = filter_frame(to_frame(records), [condition])
    assert len(chosen) == sum(map(expected, records)) > 0


def test_several_conditions_all_hold(sweep):
    frame = filter_frame(to_frame(sweep()), ["method=svd,bs", "ratio_target>=2", "ratio_target<5"])
    assert set(frame["label"]) == {"svd", "bs"}
    assert set(frame["ratio_target"]) == {2.0, 3.0}


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00+00:00", "2026-01-31T13:00+01:00", "2026-01-31T12:00"])
def test_times_are_compared_as_times(record, text):
    frame = to_frame([record(evaluated_at=f"2026-01-31T{hour}:00:00+00:00", stage_key=hour) for hour in ("11", "12")])
    assert list(filter_frame(frame, [f"evaluated_at>={text}"])["stage_key"]) == ["12"]
    assert list(filter_frame(frame, [f"evaluated_at<{text}"])["stage_key"]) == ["11"]
    assert len(filter_frame(frame, ["evaluated_at>=2026-01-31"])) == 2


def test_a_value_with_a_comma_is_quoted(record):
    frame = to_frame([record(label="bs, top"), record(label="bs", stage_key="b")])
    assert list(filter_frame(frame, ['label="bs, top"'])["label"]) == ["bs, top"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("method", "is not a condition"),
        ("methd=svd", "did you mean 'method'"),
        ("method=sdv", "did you mean 'svd'"),
        ("method=", "no readable value"),
        ("method>svd", "needs a column of numbers"),
        ("ratio_target>=two", "is a number, and 'two' is not"),
        ("seed=1.5", "is a whole number"),
        ("ratio_target=7", "no record has ratio_target '7'; there are: 1, 1.5, 2, 3, 5"),
        ("ratio_target>50", "no record is left"),
        ("headline=yes", "is true or false"),
        ("ratio_target>=nan", "is a number, and 'nan' is not"),
        ("evaluated_at<=yesterday", "is a time such as 2026-01-31 .* and 'yesterday' is not"),
        ("evaluated_at<=2026-13-45", "and '2026-13-45' is not"),
        ("evaluated_at<=0001-01-01T00:00+14:00", r"and '0001-01-01T00:00\+14:00' is not"),
        ("ratio_target>1,2", "one number"),
        ("__class__=x", "unknown column"),
        ("value.__class__=x", "is not a condition"),
        ('label="a', "no readable value"),
    ],
)
def test_what_cannot_be_meant_is_refused(sweep, condition, message):
    with pytest.raises(UserError, match=message):
        filter_frame(to_frame(sweep()), [condition])


def test_of_no_records_nothing_is_chosen():
    with pytest.raises(UserError, match="there are no records to choose from; name a run"):
        filter_frame(to_frame([]), ["headline=true"])


@settings(deadline=None)
@given(st.text(max_size=40) | st.builds("{}{}{}".format, st.sampled_from(COLUMNS), st.sampled_from("=<>!"), st.text()))
def test_any_text_is_a_condition_or_a_sentence(text):
    try:
        column = parse_condition(text).column
    except UserError:
        return
    assert column in COLUMNS
