"""Names of cells: by label, and by the method in full."""

import pytest
from made_records import make_record

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import to_frame, write_records
from lowrank_bench.results.cells import find_cell, label_of


def test_a_method_with_a_label_is_found_by_label_and_in_full():
    options = {"quick": '{"length":512,"samples":16}', "slow": '{"length":512,"samples":256}'}
    records = [make_record(label=label, method="svd-llm", options=text) for label, text in options.items()]
    frame = to_frame([*records, make_record()])
    assert label_of(frame, "quick") == "quick"
    assert label_of(frame, "svd-llm:length=512,samples=16") == "quick"
    assert label_of(frame, "svd-llm:samples=256") == "slow"
    for several_or_none in ("svd-llm", "svd-llm:length=512", "svd-llm:length=3", "bs", "no method"):
        assert label_of(frame, several_or_none) == several_or_none


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ([{}, {"benchmark": "gsm8k", "variant": "gsm8k-0shot"}], "--benchmark"),
        ([{}, {"seed": 7}], "--seed"),
        ([{}, {"seed": 7, "benchmark": "gsm8k", "variant": "gsm8k-0shot"}], "--benchmark or --seed"),
    ],
)
def test_of_several_evaluations_only_options_that_tell_them_apart_are_advised(tmp_path, changes, options):
    records = [make_record(**change, stage_key=f"evaluate-{number}") for number, change in enumerate(changes)]
    write_records(tmp_path, records)
    name = f"{tmp_path}:{records[0].label}@{records[0].ratio_target:g}"
    with pytest.raises(UserError, match=rf"names several evaluations; add {options} \(there are"):
        find_cell(name)
