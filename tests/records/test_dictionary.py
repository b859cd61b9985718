"""The committed data dictionary is that of the schema, and what it promises is so."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from lowrank_bench.records.dictionary import data_dictionary
from lowrank_bench.records.files import COLUMNS, write_records

PAGE = Path(__file__).parent.parent.parent / "docs" / "data-dictionary.md"


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text() == data_dictionary(), "run: bench table --dictionary > docs/data-dictionary.md"


def test_types_in_parquet_are_those_of_the_page(tmp_path, sweep):
    _, path = write_records(tmp_path, sweep(seeds=(1, 2)))
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    promised = {cells[0].strip("| `"): cells[2] for cells in rows}
    names = {"double": "float64"}
    stored = {field.name: names.get(str(field.type), str(field.type)) for field in pq.read_schema(path)}
    assert stored == promised
    assert list(promised) == list(COLUMNS)
    frame = pd.read_parquet(path)
    assert not frame.isna().to_numpy().any()
    for column, dtype in frame.dtypes.items():
        assert not pd.api.types.is_object_dtype(dtype), column
        assert str(dtype) in ("str", promised[column])
