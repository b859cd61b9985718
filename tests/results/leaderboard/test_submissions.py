"""Foreign records: what is wrong is reported line by line, what is right is kept once."""

import csv
import io
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import COLUMNS, read_records, write_records
from lowrank_bench.results.leaderboard.submissions import FaultyFile, add, check, stored


@pytest.fixture
def lines(tmp_path, sweep):
    """The file of a good sweep as rows of texts."""
    path, _ = write_records(tmp_path / "good", sweep(methods=("svd", "bs")))
    return list(csv.reader(path.open(newline="")))


@pytest.fixture
def written(tmp_path):
    def write(rows, name="records.csv", **options):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", **options).writerows(rows)
        (tmp_path / name).write_text(text.getvalue(), encoding="utf-8")
        return tmp_path / name

    return write


def changed(lines, number, column, value):
    """The rows with one cell changed; ``number`` as in the file, the header being 1."""
    rows = [list(row) for row in lines]
    rows[number - 1][rows[0].index(column)] = value
    return rows


def faults(path):
    with pytest.raises(FaultyFile) as error:
        check(path)
    assert str(path) in str(error.value)
    return [(fault.line, fault.column, fault.message) for fault in error.value.faults]


def test_good_records_are_kept_once_whatever_their_order(tmp_path, written, lines):
    folder = tmp_path / "submissions"
    first = add(written(lines), folder)
    assert (first.records, first.new) == (len(lines) - 1, True)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    body = lines[1:]
    random.Random(1).shuffle(body)
    order = random.Random(2).sample(range(len(COLUMNS)), len(COLUMNS))
    shuffled = [[row[i] for i in order] for row in [lines[0], *body]]
    again = add(written(shuffled, "other-name.csv"), folder)
    assert (again.path, again.new) == (first.path, False)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    (name,) = stored(folder)
    assert name.startswith("submitted ")
    assert len(stored(folder)[name]) == len(lines) - 1


def test_what_is_stored_says_the_same(tmp_path, written, lines):
    path = add(written(lines), tmp_path / "submissions").path
    assert read_records(path).equals(read_records(tmp_path / "good" / "results.csv"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", "nan", "NaN"),
        ("value", "1e999", "beyond the largest number"),
        ("value", "many", "'many': "),
        ("n", "0", "greater than or equal to 1"),
        ("bytes", str(2**70), "less than or equal"),
        ("params", "-5", "'-5': "),
        ("stage", "deployed", "'pretrained', 'finetuned', 'compressed' or 'recovered'"),
        ("label", "=HYPERLINK(1)", "formula"),
        ("label", "a\x1b[31mb", "U+001B"),
        ("label", "good\u202eevil", "U+202E"),
        ("label", "m" * 300, "at most 200"),
        ("options", "[" * 5000, "JSON object"),
        ("options", '{"b": 1}', "no spaces"),
        ("evaluated_at", "yesterday", "yesterday"),
        ("headline", "perhaps", "'perhaps': "),
        ("higher_is_better", "false", "for accuracy it must be true"),
    ],
)
def test_a_bad_cell_is_reported_with_line_and_column(written, lines, column, value, message):
    complaints = faults(written(changed(lines, 4, column, value)))
    assert [(line, name) for line, name, _ in complaints] == [(4, column)]
    assert message in complaints[0][2]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ratio", "7.5", "ratio 7.5 is not params_original / params"),
        ("kept", "0.9", "kept 0.9 is not 1 / ratio"),
        ("low", "0.99", "outside its interval"),
        ("method", "none", "does not go with stage"),
    ],
)
def test_cells_that_do_not_go_together_are_reported(written, lines, column, value, message):
    complaints = faults(written(changed(lines, 6, column, value)))
    assert [line for line, _, _ in complaints] == [6]
    assert message in complaints[0][2]


def test_percent_is_not_taken_for_a_share(written, lines):
    rows = changed(changed(changed(lines, 5, "value", "53.1"), 5, "low", "50"), 5, "high", "56")
    ((line, _, message),) = faults(written(rows))
    assert line == 5
    assert "0..1" in message


def test_all_faulty_lines_are_reported_at_once(written, lines):
    rows = changed(changed(changed(lines, 3, "n", "x"), 5, "label", ""), 5, "value", "nan")
    rows[6] = rows[6][:-1]
    assert [(line, column) for line, column, _ in faults(written(rows))] == [
        (3, "n"),
        (5, "label"),
        (5, "value"),
        (7, ""),
    ]


def test_nothing_is_stored_of_a_faulty_file(tmp_path, written, lines):
    with pytest.raises(FaultyFile, match="1 fault in 1 line"):
        add(written(changed(lines, 3, "n", "x")), tmp_path / "submissions")
    assert not (tmp_path / "submissions").exists()


def test_repeated_and_contradicting_records_are_reported_with_both_lines(written, lines):
    ((line, column, message),) = faults(written([*lines, lines[3]]))
    assert (line, column) == (len(lines) + 1, "")
    assert "repeats line 4" in message
    other = changed([*lines, lines[3]], len(lines) + 1, "value", lines[3][lines[0].index("low")])
    ((line, column, message),) = faults(written(other))
    assert (line, column) == (len(lines) + 1, "value")
    assert "contradicts line 4" in message


def test_one_model_has_one_size(written, lines):
    rows = [list(row) for row in lines]
    indices = {name: rows[0].index(name) for name in ("params_original", "params")}
    for name in indices:
        rows[5][indices[name]] = str(2 * int(rows[5][indices[name]]))
    complaints = faults(written(rows))
    assert (complaints[0][0], complaints[0][1]) == (6, "params_original")
    assert "contradicts line 2" in complaints[0][2]


def test_other_columns_and_versions_are_reported(written, lines):
    rows = [list(row) for row in lines]
    rows[0][rows[0].index("seed")] = "sead"
    assert faults(written(rows)) == [
        (1, "sead", "no such column; did you mean 'seed'?"),
        (1, "seed", "this column is missing: seed of training, compression and sampling"),
    ]
    future = changed(rows, 2, "schema_version", "4")  # another version may have other columns
    ((line, column, message), *_) = faults(written(future))
    assert (line, column) == (2, "schema_version")
    assert "update lowrank-bench" in message
    assert "semicolons" in faults(written(lines, delimiter=";"))[0][2]


@pytest.mark.parametrize(
    ("raw", "line", "message"),
    [
        (b"", 0, "empty"),
        (b"a,b\n\xff\xfe\n", 2, "UTF-8"),
        (b'a,"b\n1,2\n', 1, "not CSV"),
        (b"a\x00,b\n1,2\n", 1, ""),
    ],
)
def test_what_is_no_csv_is_reported(tmp_path, raw, line, message):
    path = tmp_path / "records.csv"
    path.write_bytes(raw)
    complaints = faults(path)
    assert complaints[0][0] == line
    assert message in complaints[0][2]


def test_html_is_text_and_allowed(tmp_path, written, lines):
    path = written(changed(lines, 4, "label", "<b>svd</b>"))
    assert add(path, tmp_path / "submissions").new


def test_a_changed_submission_is_not_read(tmp_path, written, lines):
    path = add(written(lines), tmp_path / "submissions").path
    path.write_text(path.read_text().replace("svd", "bs2", 1))
    with pytest.raises(UserError, match="was changed after it was added"):
        stored(tmp_path / "submissions")


def test_missing_files_are_reported(tmp_path):
    for name in ("absent.csv", "records.txt"):
        with pytest.raises(UserError, match="no CSV file"):
            check(tmp_path / name)
    assert stored(tmp_path / "none") == {}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(2, 9), st.sampled_from(COLUMNS), st.text(max_size=60))
def test_any_cell_is_either_refused_or_kept_as_it_is(tmp_path, lines, number, column, text):
    text = text.encode("utf-8", "ignore").decode()
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(changed(lines, number, column, text))
    messages, records = [], []
    try:
        records = check(path)
    except FaultyFile as error:
        messages = list(map(str, error.faults))
    assert all(text.isprintable() for text in messages)
    assert bool(messages) != bool(records)
    if records and column in ("label", "sweep", "device"):
        assert getattr(records[number - 2], column) == text


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_no_submissions(tmp_path, kind):
    for name in ("x.csv", "submitted-0123456789ab.csv"):
        os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no CSV file"):
        check(tmp_path / "x.csv")
    with pytest.raises(UserError, match="no regular file"):
        stored(tmp_path)
