"""Names of cells: by label, and by the method in full."""

from made_records import make_record

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.cells import label_of


def test_a_method_with_a_label_is_found_by_label_and_in_full():
    options = {"quick": '{"length":512,"samples":16}', "slow": '{"length":512,"samples":256}'}
    records = [make_record(label=label, method="svd-llm", options=text) for label, text in options.items()]
    frame = to_frame([*records, make_record()])
    assert label_of(frame, "quick") == "quick"
    assert label_of(frame, "svd-llm:length=512,samples=16") == "quick"
    assert label_of(frame, "svd-llm:samples=256") == "slow"
    for several_or_none in ("svd-llm", "svd-llm:length=512", "svd-llm:length=3", "bs", "no method"):
        assert label_of(frame, several_or_none) == several_or_none
