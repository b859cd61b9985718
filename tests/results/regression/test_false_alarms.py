"""The promise of the arithmetic: an unchanged method fails fewer than 5 % of its checks, a damaged one does fail."""

import numpy as np
import pandas as pd
import pytest

from lowrank_bench.records.files import to_frame
from lowrank_bench.records.intervals import wilson
from lowrank_bench.results.regression.compare import Tolerance, check_run

N = 250
MEANS = np.array([0.95, 0.8, 0.55, 0.3, 0.08, 0.02])
SPREADS = np.array([0.01, 0.03, 0.07, 0.07, 0.02, 0.005])
"""Of single seeds: cells on the slope vary a lot, those on the plateau and the floor hardly."""


class Lottery:
    """Draws runs of one protocol: what each seed's training gives, then which problems are solved."""

    def __init__(self, record, cells):
        self.random = np.random.default_rng(3)
        self.means, self.spreads = np.resize(MEANS, cells), np.resize(SPREADS, cells)
        base = {"method": "none", "label": "none", "stage": "finetuned", "ratio_target": 1.0, "params": 6_738_415_616}
        rows = [record(**base, n=N), *(record(label=f"m{i}", n=N) for i in range(cells))]
        self.template = to_frame(rows).sort_values("stage", kind="stable", ignore_index=True)
        self.template = self.template.iloc[np.argsort(self.template["stage"] != "finetuned", kind="stable")]
        self.labels = [int(label[1:]) for label in self.template["label"].iloc[1:]]

    def run(self, seeds, damage=0.0):
        frames = []
        for seed in seeds:
            true = 0.97 * np.clip(self.random.normal(self.means, self.spreads) - damage, 0, 1)
            shares = np.concatenate([[0.97], true[self.labels]])
            solved = self.random.binomial(N, shares)
            ends = [wilson(int(k), N) for k in solved]
            frames.append(
                self.template.assign(
                    seed=seed,
                    value=solved / N,
                    low=[e.low for e in ends],
                    high=[e.high for e in ends],
                    dataset_sha256=f"data{seed}",
                    stage_key=f"s{seed}",
                )
            )
        return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(("base_seeds", "run_seeds"), [(3, 1), (3, 3), (5, 1)])
@pytest.mark.parametrize("cells", [6, 30])
def test_an_unchanged_method_seldom_fails(record, base_seeds, run_seeds, cells):
    lottery, rounds = Lottery(record, cells), 400 if cells == 6 else 150
    alarms = sum(
        bool(check_run(lottery.run(range(100, 100 + run_seeds)), lottery.run(range(base_seeds)), Tolerance()).failed)
        for _ in range(rounds)
    )
    # Two standard errors of the simulation above the promised 5 %.
    assert alarms / rounds < 0.05 + 2 * (0.05 * 0.95 / rounds) ** 0.5


@pytest.mark.parametrize(("run_seeds", "damage"), [(1, 0.6), (3, 0.35)])
def test_a_large_fall_is_seen(record, run_seeds, damage):
    lottery, rounds = Lottery(record, 6), 100
    seen = 0
    for _ in range(rounds):
        check = check_run(lottery.run(range(100, 100 + run_seeds), damage), lottery.run(range(3)), Tolerance())
        seen += {"m0", "m1"} <= {cell.name.label for cell in check.failed}
    assert seen / rounds > 0.9
