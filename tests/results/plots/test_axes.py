"""Axes of figures have ticks, whatever range they span."""

import re

import pytest

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.plots.axes import log_locator
from lowrank_bench.results.plots.curves import draw_curves


@pytest.mark.parametrize("low", [25.28, 3.0, 1e-3])
@pytest.mark.parametrize("decades", [1, 2, 4, 4.9, 5.1, 8.5, 9.5, 12, 40, 200])
def test_a_logarithmic_axis_has_ticks_at_any_span(low, decades):
    """Gemma 3 270M's figure from 25 to 7.75e9 had none at all."""
    high = low * 10**decades
    ticks = [tick for tick in log_locator(low, high).tick_values(low, high) if low <= tick <= high]
    assert 2 <= len(ticks) <= 20


@pytest.mark.parametrize("worst", [7.75e9, 3e30])
def test_a_figure_over_many_decades_names_its_values(worst, tmp_path, record):
    values = {"svd": worst, "fwsvd": 25.28}
    rows = [
        record(metric="perplexity", method=name, label=name, stage_key=name, value=v, low=v * 0.9, high=v * 1.1)
        for name, v in values.items()
    ]
    (svg,) = [path for path in draw_curves(to_frame(rows), tmp_path) if path.suffix == ".svg"]
    assert len(re.findall(r"1e\+\d+", svg.read_text())) >= 3


@pytest.mark.parametrize("x", ["bytes", "runtime_bytes"])
def test_sizes_in_several_bits_have_no_axis_of_ratios(x, tmp_path, record):
    """At 2x there are 16-bit and 8-bit weights: the mean of both is no place for the ratio."""
    params = 3_369_207_808
    rows = [record(stage_key="whole", bytes=2 * params)]
    rows += [record(label="svd:bits=8", options='{"bits":8}', stage_key="rounded", bytes=params + 10**6)]
    (svg,) = [path for path in draw_curves(to_frame(rows), tmp_path, x=x) if path.suffix == ".svg"]
    assert ("ratio asked for" in svg.read_text()) is (x == "runtime_bytes")
