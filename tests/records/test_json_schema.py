"""The published schema is the one that records are validated with."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from lowrank_bench.records.json_schema import record_schema, schema_text
from lowrank_bench.records.schema import Record, columns_of, upgraded

PUBLISHED = Path(__file__).parents[2] / "docs" / "records.schema.json"


@pytest.fixture(scope="module")
def published():
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_up_to_date():
    assert PUBLISHED.read_text() == schema_text(), "run: bench leaderboard schema > docs/records.schema.json"


def test_it_takes_every_valid_record(published, sweep):
    for record in sweep(seeds=(1, 2), language=True):
        published.validate(record.model_dump())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("schema_version", 4), ("stage", "deployed"), ("label", ""), ("label", "=1+1"), ("label", "a\x1bb")),
        *(("ratio", 0), ("n", 0), ("bytes", -1), ("bytes", 2**70), ("confidence", 1), ("headline", "yes")),
        *(("value", "many"), ("params", 1.5), ("model", "m" * 5000)),
    ],
)
def test_both_refuse_the_same(published, record, column, value):
    row = record().model_dump() | {column: value}
    errors = [error.absolute_path[0] for error in published.iter_errors(row) if error.absolute_path]
    assert errors == [column]
    with pytest.raises(ValidationError) as error:
        Record.model_validate(row, strict=True)
    assert column in [entry["loc"][0] for entry in error.value.errors() if entry["loc"]]


def test_both_want_every_column_and_no_other(published, record):
    row = record().model_dump()
    for name in row:
        less = {k: v for k, v in row.items() if k != name}
        assert not published.is_valid(less)
        with pytest.raises(ValidationError):
            Record.model_validate(less)
    assert not published.is_valid(row | {"extra": 1})


def test_a_record_of_version_1_has_all_its_steps_as_its_budget(record):
    older = {
        "schema_version": 1,
        **record(steps_compress=150, steps_recover=450).model_dump(include=set(columns_of(1))),
    }
    assert Record.model_validate(upgraded(older | {"schema_version": 1})).steps_budget == 600


def test_every_column_says_what_it_is():
    assert all(len(field["description"]) > 10 for field in record_schema()["properties"].values())
