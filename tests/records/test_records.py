"""The schema refuses nonsense; the files give back what was written, byte for byte the same each time."""

import math
import os
import random
import shutil
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.checksums import CHECKSUMS_NAME
from lowrank_bench.records.files import (
    COLUMNS,
    MAX_RECORDS,
    TIMING_COLUMNS,
    Record,
    read_records,
    same_results,
    to_frame,
    write_records,
)
from lowrank_bench.records.schema import ADDED_COLUMNS
from lowrank_bench.results.leaderboard.submissions import check


def test_round_trip_through_both_files(tmp_path, sweep):
    records = sweep()
    csv_path, parquet_path = write_records(tmp_path, records)
    for path in (csv_path, parquet_path, tmp_path):
        pd.testing.assert_frame_equal(read_records(path), to_frame(records))
    assert list(pd.read_parquet(parquet_path).columns) == list(COLUMNS) == list(pd.read_csv(csv_path).columns)


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(1e-9, 1e6), st.integers(-(2**40), 2**40))
def test_every_float_and_integer_survives_the_csv(tmp_path_factory, record, value, seconds, seed):
    folder = tmp_path_factory.mktemp("floats")
    original = record(value=value, low=-math.inf, high=math.inf, seconds_fit=seconds, seed=seed)
    row = read_records(write_records(folder, [original])[0]).iloc[0]
    assert (row["value"], row["seconds_fit"], row["seed"]) == (value, seconds, seed)
    assert (row["low"], row["high"]) == (-math.inf, math.inf)


def seen(text):
    return not regex.search(r"\p{Default_Ignorable_Code_Point}", text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=20).filter(seen))
def test_any_accepted_text_survives_the_csv(tmp_path_factory, record, label):
    if label[0] in "=+-@":
        with pytest.raises(ValidationError, match="formula"):
            record(label=label)
        return
    folder = tmp_path_factory.mktemp("texts")
    assert read_records(write_records(folder, [record(label=label)])[0]).iloc[0]["label"] == label


def test_equal_records_give_equal_bytes_in_any_order(tmp_path, sweep):
    records = sweep(seeds=(42, 43))
    first = [path.read_bytes() for path in write_records(tmp_path / "a", records)]
    random.Random(0).shuffle(records)
    assert [path.read_bytes() for path in write_records(tmp_path / "b", records)] == first
    again = [Record.model_validate(row) for row in read_records(tmp_path / "a").to_dict("records")]
    assert [path.read_bytes() for path in write_records(tmp_path / "c", again)] == first


def test_every_field_is_described():
    assert all(field.description for field in Record.model_fields.values())
    assert set(TIMING_COLUMNS) < set(COLUMNS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": math.nan}, "NaN"),
        ({"value": 0.9}, "outside its interval"),
        ({"ratio": 3.0}, "params_original / params"),
        ({"kept": 0.9}, "1 / ratio"),
        ({"method": "none"}, "does not go with stage"),
        ({"options": '{"b": 1, "a": 2}'}, "sorted keys"),
        ({"options": '{"a":NaN}'}, "sorted keys"),
        ({"label": "=1+1"}, "formula"),
        ({"label": "svd\x1b[31m"}, "control characters"),
        ({"evaluated_at": "2026-01-31T12:00:00"}, "UTC"),
        ({"evaluated_at": "yesterday"}, "isoformat"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"schema_version": 4}, "less than or equal to 3"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_nonsense_is_refused(record, changes, message):
    with pytest.raises(ValidationError, match=message):
        record(**changes)


def test_records_are_frozen(record):
    with pytest.raises(ValidationError, match="frozen"):
        record().value = 1.0


def test_two_records_of_one_measurement_are_refused(tmp_path, record):
    with pytest.raises(UserError, match="same measurement"):
        write_records(tmp_path, [record(), record(value=0.39)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "cannot be read|columns of records"),
        (lambda raw: raw[: len(raw) - 300], "cannot be read|cut off"),
        (lambda raw: b"\xff\xfe\x00" * 50, "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, sweep, name, damage, message):
    write_records(tmp_path, sweep())
    (tmp_path / CHECKSUMS_NAME).unlink()
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        read_records(path)
    assert str(path) in str(error.value)


def test_foreign_files_are_named(tmp_path, record):
    path, _ = write_records(tmp_path, [record()])
    text = path.read_text()
    for old, new, message in (
        ("schema_version,", "schema,", "missing: schema_version; unknown: schema"),
        ("\n3,demo", "\n7,demo", "schema_version is 7 and this version reads 3; update"),
        ("\n3,demo", "\n0,demo", "record 1 is not valid: schema_version is '0'; this version reads 1 to 3"),
        (",0.4,", ",4e999,", "value: '4e999' is beyond the largest number"),
        (",0.426,", ",1e999,", "high: '1e999' is beyond the largest number"),
        (",0.4,", ",40.0,", "record 1 is not valid"),
        (",2.0,2.0,", ",inf,2.0,", "ratio_target: Input should be a finite number"),
        (",42,", ",99999999999999999999,", "seed: Input should be less than"),
        (",svd,svd,", ",svd,s\u202evd,", "label: invisible characters .* U\\+202E"),
        (",svd,svd,", ",svd,s\u200bvd,", "label: invisible characters .* U\\+200B"),
        (",svd,svd,", ",svd,s\x00vd,", "label: control characters .* U\\+0000"),
        (",svd,svd,", f",svd,{'x' * 1001},", "label: String should have at most 1000 characters"),
        (",svd,svd,", ",svd,=HYPERLINK(1),", "label: .* would be a formula"),
        (",0.4,", ",nan,", "record 1 is not valid: value: NaN"),
        (",1319,", ",many,", "record 1 is not valid: n: "),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            read_records(path)
    for missing in (tmp_path / "absent", tmp_path / "absent.csv", tmp_path / "x.txt"):
        with pytest.raises(UserError, match=str(missing)):
            read_records(missing)
    with pytest.raises(UserError, match=r"holds no results\.csv"):
        read_records((tmp_path / "empty").mkdir() or tmp_path / "empty")


def test_same_results_ignores_timings_and_nothing_else(record, sweep):
    frame = to_frame(sweep())
    later = frame.assign(seconds_fit=1e6, peak_memory_bytes=1, evaluated_at="2027-01-31T12:00:00+00:00")
    assert same_results(frame, later) == []
    moved = frame.assign(tokens_recover=frame["tokens_recover"].where(frame.index != 3, 5))
    (difference,) = same_results(frame, moved)
    assert "tokens_recover" in difference
    (difference,) = same_results(frame, frame.iloc[1:])
    assert "only the first has" in difference


def test_importing_results_loads_neither_torch_nor_plotting():
    code = (
        "import sys; from lowrank_bench.records import files, intervals, schema; "
        "from lowrank_bench.results.plots import curves; from lowrank_bench.results.tables import pivot, writers; "
        "sys.exit(bool({'torch', 'matplotlib', 'pandas', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shares_are_not_percent(record):
    with pytest.raises(ValidationError, match=r"a share in 0\.\.1, not percent"):
        record(value=40.0, low=37.5, high=42.6)
    assert record(metric="perplexity", value=40.0, low=37.5, high=42.6)


def test_html_in_names_stays_text(tmp_path, record):
    name = "<script>alert(1)</script>"
    for path in write_records(tmp_path, [record(label=name)]):
        assert read_records(path)["label"].tolist() == [name]


def appended(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, change(lines[1])]) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line, "records 1 and 2 describe the same measurement .* twice"),
        (
            lambda line: line.replace(",0.4,0.375,", ",0.39,0.375,"),
            "records 1 and 2 .* contradict each other: value is 0.4 in one and 0.39 in the other",
        ),
        (lambda line: line.replace(",60.25,", ",61.25,"), "records 1 and 2 .* timed twice"),
        (lambda line: line.replace("cpu", "gpu"), "contradict each other: device is 'cpu' in one and 'gpu'"),
        (lambda line: line[:-40] + "\n" + line[-40:], "record 2 is not valid|cells; the file is cut off"),
        (lambda line: ",".join(line.split(",")[:20]), "record 2 has 20 of 55 cells; the file is cut off or torn"),
    ],
)
def test_duplicates_contradictions_and_torn_lines_are_named(tmp_path, record, change, message):
    path, _ = write_records(tmp_path, [record()])
    appended(path, change)
    with pytest.raises(UserError, match=message):
        read_records(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_named(tmp_path, record, encoding):
    path, _ = write_records(tmp_path, [record(label="Größe")])
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(UserError, match=r"is not UTF-8 .* save it as CSV in UTF-8"):
        read_records(path)


def test_what_spreadsheets_make_of_a_csv(tmp_path, record):
    path, _ = write_records(tmp_path, [record()])
    (tmp_path / CHECKSUMS_NAME).unlink()
    text = path.read_text()
    path.write_text("\ufeff" + text.replace("\n", "\r\n"))
    assert len(read_records(path)) == 1
    path.write_text(text.replace(",", ";"))
    with pytest.raises(UserError, match="separated by semicolons"):
        read_records(path)


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_a_future_schema_is_refused_before_its_columns(tmp_path, record, name):
    write_records(tmp_path, [record()])
    (tmp_path / CHECKSUMS_NAME).unlink()
    path = tmp_path / name
    if path.suffix == ".csv":
        text = path.read_text().replace("schema_version,", "schema_version,invented_later,").replace("\n3,", "\n4,x,")
        path.write_text(text)
    else:
        pd.read_parquet(path).assign(schema_version=4, invented_later="x").to_parquet(path)
    with pytest.raises(UserError, match="schema_version is 4 and this version reads 3; update lowrank-bench"):
        read_records(path)


def test_one_read_parquet_gives_the_same_frame(tmp_path, sweep):
    _, path = write_records(tmp_path, sweep())
    pd.testing.assert_frame_equal(pd.read_parquet(path), read_records(path))


def test_every_flipped_bit_of_a_run_is_seen(tmp_path, sweep):
    """400 places of results.parquet, as many of results.csv and all of the checksums' own bytes."""
    csv, parquet = write_records(tmp_path, sweep())
    draw = random.Random(0)
    for path in (parquet, csv, tmp_path / CHECKSUMS_NAME):
        raw = path.read_bytes()
        bits = (
            range(8 * len(raw)) if len(raw) < 200 else draw.sample(range(8 * len(raw)), 400 if path == parquet else 40)
        )
        for bit in bits:
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with pytest.raises(UserError):
                read_records(tmp_path)
        path.write_bytes(raw)
    assert len(read_records(tmp_path))


def test_files_cut_off_or_exchanged_are_seen(tmp_path, sweep):
    whole = sweep()
    for name, records in (("a", whole), ("b", whole[:1])):
        write_records(tmp_path / name, records)
    for name in ("results.csv", "results.parquet"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
        with pytest.raises(UserError, match=f"{name} has changed since it was written .*results.sha256"):
            read_records(tmp_path / "a" / name)
        write_records(tmp_path / "a", whole)
        raw = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(raw[: len(raw) // 2])
        with pytest.raises(UserError, match=name):
            read_records(tmp_path / "a" / name)
        write_records(tmp_path / "a", whole)


def test_an_edited_csv_is_refused_and_a_copy_of_it_is_read(tmp_path, record):
    path, _ = write_records(tmp_path / "run", [record()])
    path.write_text(path.read_text().replace(",0.375,", ",0.376,", 1))
    for name in (path, path.parent):  # the folder's Parquet is untouched
        with pytest.raises(UserError, match=r"results\.csv has changed since it was written .* copy the file"):
            read_records(name)
    (tmp_path / "mine").mkdir()
    shutil.copy(path, tmp_path / "mine")
    assert len(read_records(tmp_path / "mine")) == 1
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS_NAME], cwd=path.parent, capture_output=True, text=True)
    assert "results.csv: FAILED" in done.stdout
    assert "results.parquet: OK" in done.stdout


def test_a_copied_parquet_file_without_its_checksums_knows_its_pages(tmp_path, sweep):
    _, path = write_records(tmp_path, sweep())
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    (tmp_path / "copy.parquet").write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_records(tmp_path / "copy.parquet")


def bomb(path, columns, rows=1):
    """Write a Parquet file whose columns repeat one value in each row."""
    table = pa.table({name: pa.array([value]).take(pa.array([0] * rows)) for name, value in columns.items()})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1 << 20


def test_small_parquet_files_that_stand_for_gigabytes_are_refused(tmp_path, record):
    path, whole = tmp_path / "x.parquet", record().model_dump()
    bomb(path, whole, MAX_RECORDS + 1)
    with pytest.raises(UserError, match="more than 500,000 records"):
        read_records(path)
    bomb(path, whole | {"label": "x" * 10_000}, 200_000)
    with pytest.raises(UserError, match="bytes of text when it is read"):
        read_records(path)
    bomb(path, {f"column{i}": "x" for i in range(2000)})
    with pytest.raises(UserError, match="has not the columns of records"):
        read_records(path)
    bomb(path, whole | {"label": ["x"] * 3})
    with pytest.raises(UserError, match="has no numbers or text in the column 'label'"):
        read_records(path)


@pytest.mark.parametrize("text", ["a," * 1_500_000, ',"\n"' * 600_000, "," * (1 << 22) + "\n"])
def test_a_csv_file_of_a_million_columns_is_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match="a record of more than 2,097,152 characters"):
        read_records(tmp_path / "x.csv")
    with pytest.raises(UserError):
        check(tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["results.csv", "results.parquet", "results.sha256"])
def test_pipes_are_no_results(tmp_path, record, name):
    write_records(tmp_path, [record()])
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    if name != "results.parquet":  # then the folder's CSV is read
        with pytest.raises(UserError):
            read_records(tmp_path / ("results.csv" if name != "results.sha256" else ""))
    with pytest.raises(UserError):
        read_records(tmp_path / name)


@pytest.mark.parametrize("hidden", ["\u3164", "\ufe0f", "\u115f", "\u034f", "\u180b", "\U000e0100"])
def test_characters_that_are_not_seen_are_refused(record, hidden):
    with pytest.raises(ValidationError, match=f"invisible characters .* U\\+{ord(hidden):04X}"):
        record(label=f"svd{hidden}")


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_files_of_version_1_are_read_with_what_follows_from_them(tmp_path, record, name):
    records = [record(dtype="bfloat16"), record(dtype="float32", seed=1), record(dtype="int5", seed=2)]
    csv_path, parquet_path = write_records(tmp_path, records)
    (tmp_path / CHECKSUMS_NAME).unlink()
    old = pd.read_parquet(parquet_path).drop(columns=[*ADDED_COLUMNS[2], *ADDED_COLUMNS[3]]).assign(schema_version=1)
    if name == "results.csv":
        parquet_path.unlink()
        old.to_csv(csv_path, index=False)
    else:
        old.to_parquet(parquet_path)
    frame = read_records(tmp_path / name).sort_values("seed")
    assert set(frame.schema_version) == {3}
    assert set(frame.tuned) == {"{}"}
    params = records[0].params
    assert dict(zip(frame.dtype, frame.runtime_bytes, strict=True)) == {
        "bfloat16": 2 * params,
        "float32": 4 * params,
        "int5": 0,
    }
    assert set(frame.seconds_quantise) == {0.0}
    assert set(frame.steps_budget) == {records[0].steps_compress + records[0].steps_recover}


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_files_of_version_2_are_read_as_not_tuned(tmp_path, record, name):
    csv_path, parquet_path = write_records(tmp_path, [record(steps_compress=150, steps_recover=450, steps_budget=600)])
    (tmp_path / CHECKSUMS_NAME).unlink()
    now = read_records(csv_path)
    old = pd.read_parquet(parquet_path).drop(columns=list(ADDED_COLUMNS[3])).assign(schema_version=2)
    if name == "results.csv":
        parquet_path.unlink()
        old.to_csv(csv_path, index=False)
    else:
        old.to_parquet(parquet_path)
    pd.testing.assert_frame_equal(read_records(tmp_path / name), now)


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_versions_with_later_columns_are_refused(tmp_path, record, version):
    path, _ = write_records(tmp_path, [record()])
    path.write_text(path.read_text().replace("\n3,", f"\n{version},"))
    with pytest.raises(UserError, match="has not the columns of records"):
        read_records(path)
