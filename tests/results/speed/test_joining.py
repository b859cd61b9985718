"""Quality over bytes and over tokens per second."""

import math

import pytest

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.plots.axes import AXES
from lowrank_bench.results.plots.curves import draw_curves
from lowrank_bench.results.speed.joining import speed_variants, with_speed
from lowrank_bench.results.tables.pivot import pivot

VARIANT = "speed-vllm-batch64-prompt32-new32-bfloat16-cuda-8threads"


@pytest.fixture
def timed(record):
    """Speed records of svd at 2x and 3x and of the dense model, under two conditions."""
    rows = []
    for batch, factor in ((1, 1.0), (64, 30.0)):
        for ratio, speed in ((1.0, 35.0), (2.0, 50.0), (3.0, 61.0)):
            state = {"method": "none", "label": "pretrained", "stage": "pretrained", "ratio_matrices": 1.0}
            state = state if ratio == 1 else {"method": "svd", "label": "svd", "stage": "compressed"}
            params = 6_738_415_616 if ratio == 1 else int(6_738_415_616 / ratio)
            value = {"value": speed * factor, "low": speed * factor, "high": speed * factor}
            named = {"benchmark": "speed", "variant": VARIANT.replace("64", str(batch)), "scorer": ""}
            rows.append(
                record(metric="decode_tokens_per_second", ratio_target=ratio, params=params, **state, **value, **named)
            )
    return to_frame(rows)


def test_speeds_join_by_model_label_and_ratio(sweep, timed):
    frame = to_frame(sweep(methods=("svd", "bs"), seeds=(1, 2)))
    assert speed_variants(timed) == [VARIANT.replace("64", "1"), VARIANT]
    joined = with_speed(frame, timed, VARIANT)
    assert len(joined) == len(frame)
    speeds = {(r.label, r.ratio_target): r.tokens_per_second for r in joined.itertuples()}
    assert speeds["svd", 2.0] == 1500
    assert speeds["svd", 3.0] == 1830
    assert speeds["none", 1.0] == 1050  # finetuned or not, the dense model is as fast
    assert math.isnan(speeds["svd", 1.5])
    assert math.isnan(speeds["bs", 2.0])
    (table,) = (t for t in pivot(joined) if t.compressed)
    cells = {row.label: row.cells for row in table.rows}
    assert cells["svd"][2.0].tokens_per_second == 1500
    assert [cell.ratio < 2.5 for cell in AXES["tokens_per_second"].cells(table.rows[-1])] == [True, False]


def test_other_models_do_not_join(sweep, timed):
    joined = with_speed(to_frame(sweep(model_sha256="ff" * 32)), timed, VARIANT)
    assert joined["tokens_per_second"].isna().all()


def test_pictures_over_bytes_and_speed(tmp_path, sweep, timed):
    frame = to_frame(sweep(methods=("svd", "bs")))
    (picture, _) = draw_curves(frame, tmp_path, x="bytes")
    assert picture.name.endswith("-by-bytes.png")
    assert picture.stat().st_size > 10_000
    joined = with_speed(frame, timed, VARIANT)
    pictures = draw_curves(joined, tmp_path, x="tokens_per_second", condition=VARIANT)
    assert [path.suffix for path in pictures] == [".png", ".svg"]
    assert VARIANT in pictures[0].name
    assert draw_curves(joined, tmp_path / "again", x="tokens_per_second", condition=VARIANT)[1].read_bytes() == (
        pictures[1].read_bytes()
    )
    assert draw_curves(with_speed(frame, timed, "speed-other"), tmp_path, x="tokens_per_second") == []


def test_a_wide_range_of_bytes_is_logarithmic(tmp_path, sweep):
    assert len(draw_curves(to_frame(sweep(methods=("svd",), ratios=(2.0, 4.0, 30.0))), tmp_path, x="bytes")) == 2
