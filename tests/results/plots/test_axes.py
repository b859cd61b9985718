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
