"""The integer program that shares a budget with the least sum of predicted divergences (LEMS)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ....foundation.progress import track
from ..units import Unit
from ._shares import dense_rank, tail_energy, through, values
from .base import Demand, Evidence, Loss, Metric, Policy, policies

_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
_LEVEL = 0.5  # of the ranks found; the rest of the way up shares out what they leave of the budget
_ALPHA, _GAMMA = 3.0, 7.0  # LEMS's ranges


@dataclass(frozen=True)
class Choices:
    """What one unit can be: its rank, None for dense, what that costs, and the error that it is predicted to cause."""

    ranks: list[int | None]
    costs: list[int]
    errors: list[float]


@policies.register("ilp")
class IntegerProgram(Policy):
    """min Σ_i factor_i·e_i(r_i) with one rank or dense for each matrix and Σ cost <= budget, solved by HiGHS.

    LEMS (ICML 2026; lems-svd/lems, no licence: facts only). e_i(r) = KL_i·tail_i(r) / tail_i(r_0), tail the sum of the
    dropped squares, r_0 = ⌊0.1·κ⌋ and KL_i the divergence of the model with matrix i alone cut to r_0 from the dense
    one, at temperature 0.6. Without the step to dense, curves are convex and `greedy` is optimal; only the program sees
    that going from 0.95·κ to dense costs 5 % and removes all of the error. Factors favour early blocks:
    1 + γ·(S_b - S_last) / (S_0 - S_last), S_b = Σ_{k>=b} (k+1)^-α; α and γ are tried on the divergence of the whole
    model at each ratio, (0, 0) among them.

    Differences from the authors' code: divergences are over target tokens of the task's examples (theirs: positions
    from 256 on); a model that gives no finite logits counts as the worst, not as 0; α and γ come from a fixed sequence
    (theirs: Optuna's TPE); narrow matrices get a finer grid than multiples of 8; where the least share of all matrices
    is more than the budget, ranks down to the smallest are allowed. What the program leaves of the budget is shared.

    Args:
        trials: pairs of α and γ that are tried for each ratio; 1 takes no depth into account and asks for nothing.
        least: smallest share of κ; 0 for LEMS's own, 0.3 or, where less than half is kept, 0.1.
        step: distance of the ranks; 0 for 8, or κ/16 where that is less.
    """

    needs_spectrum: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    trials: int = Field(default=10, ge=1)
    least: float = Field(default=0.0, ge=0, lt=0.95)
    step: int = Field(default=0, ge=0)

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        """Whether the model is asked for each ratio."""
        return self.trials > 1

    def asks(self) -> Metric:
        """Return the divergence from the dense model."""
        return "divergence"

    def measure(self, units: Sequence[Unit], spectra: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
        """Return for each unit r_0 and KL_i, shape (2,); one evaluation a unit."""
        measured = {}
        for unit in track(units, unit="matrices measured"):
            rank = max(int(0.1 * unit.parameters / unit.cost), unit.min_rank)
            measured[unit.name] = torch.tensor([float(rank), loss({unit.name: rank})], dtype=torch.float64)
        return measured

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return demands that pass through the best ranks found."""
        affordable = evidence.share * sum(unit.parameters for unit in evidence.units)
        choices = self.choices(evidence, affordable)
        # Ranks without depth factors remain where the divergence of every trial is infinite.
        best, least = self._ranks(evidence.units, choices, 0.0, 0.0, affordable), math.inf
        if self.trials > 1:
            assert evidence.loss is not None
            for alpha, gamma in track([(0.0, 0.0), *_pairs(self.trials - 1)], unit="trials"):
                ranks = self._ranks(evidence.units, choices, alpha, gamma, affordable)
                loss = evidence.loss(ranks)
                if loss < least:
                    best, least = ranks, loss
        return through(evidence.units, [(_LEVEL, best)])

    def choices(self, evidence: Evidence, affordable: float) -> list[Choices]:
        """Return what each unit can be; see `Choices`."""
        share = self.least or (0.3 if evidence.share >= 0.5 else 0.1)
        choices = self._choices(evidence, share)
        return choices if sum(min(part.costs) for part in choices) <= affordable else self._choices(evidence, 0.0)

    def _choices(self, evidence: Evidence, least: float) -> list[Choices]:
        worst = max((kl for kl in self._divergences(evidence) if math.isfinite(kl)), default=1.0)
        choices = []
        for unit, kl in zip(evidence.units, self._divergences(evidence), strict=True):
            spectrum, even = values(evidence.spectra, unit, "ilp"), unit.parameters / unit.cost
            step = self.step or max(min(8, int(even / 16)), 1)
            first = max(unit.min_rank, math.ceil(least * even), 1)
            grid = [r for r in range(-(-first // step) * step, dense_rank(unit), step) if r < 0.95 * even]
            ranks = sorted({first, *grid}) if unit.saves(first) else []
            before = tail_energy(unit, spectrum, float(evidence.measured[unit.name][0]))
            # The floor leaves an order among the ranks of a matrix whose cut changed nothing that was measured.
            weight = max(kl if math.isfinite(kl) else worst, 1e-6 * worst, 1e-12)
            # A cut to r_0 that drops only zeros has no tail to divide by: then the sum of all squares, or 1, is taken.
            weight /= before or tail_energy(unit, spectrum, 0.0) or 1.0
            choices.append(
                Choices(
                    [*ranks, None],
                    [*(unit.factorised(rank) for rank in ranks), unit.parameters],
                    [*(weight * tail_energy(unit, spectrum, float(rank)) for rank in ranks), 0.0],
                )
            )
        return choices

    def _divergences(self, evidence: Evidence) -> list[float]:
        return [float(evidence.measured[unit.name][1]) for unit in evidence.units]

    def _ranks(
        self, units: Sequence[Unit], choices: Sequence[Choices], alpha: float, gamma: float, affordable: float
    ) -> dict[str, int]:
        factors = depth_factors(units, alpha, gamma)
        errors = [[f * error for error in part.errors] for f, part in zip(factors, choices, strict=True)]
        picked = solve([part.costs for part in choices], errors, affordable)
        ranks = {unit.name: part.ranks[i] for unit, part, i in zip(units, choices, picked, strict=True)}
        return {name: rank for name, rank in ranks.items() if rank is not None}


def depth_factors(units: Sequence[Unit], alpha: float, gamma: float) -> list[float]:
    """Return 1 + γ in the first block, falling to 1 in the last one and outside the blocks; in a line for α = 0."""
    matches = [_BLOCK.search(unit.name) for unit in units]
    blocks = [int(match[1]) if match else None for match in matches]
    last = max((block for block in blocks if block is not None), default=0)
    sums = [sum((k + 1) ** -alpha for k in range(block, last + 1)) for block in range(last + 1)]
    spread = sums[0] - sums[-1]
    return [1.0 if b is None or not spread else 1 + gamma * (sums[b] - sums[-1]) / spread for b in blocks]


def solve(costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], affordable: float) -> list[int]:
    """Return which choice each unit takes: the least sum of errors with a sum of costs that is affordable.

    Exact for up to 10,000 choices, within 1e-4 of the least error beyond that. Where nothing is affordable, each unit
    takes its cheapest choice.

    Args:
        costs, errors: of each unit's choices.
        affordable: most that the costs may be together.
    """
    import numpy as np  # scipy's import takes longer than many a stage
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    cheapest = [min(range(len(own)), key=own.__getitem__) for own in costs]
    if sum(own[index] for own, index in zip(costs, cheapest, strict=True)) > affordable:
        return cheapest
    flat = np.array([cost for own in costs for cost in own], dtype=float)
    losses = np.array([error for own in errors for error in own], dtype=float)
    owner = np.array([index for index, own in enumerate(costs) for _ in own])
    picks = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(costs), len(owner)))
    scale = losses.max() or 1.0  # the solver's own tolerances are absolute
    solution = milp(
        1e4 * losses / scale,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(picks, 1, 1), LinearConstraint(flat[None] / affordable, -np.inf, 1.0)],
        options={"mip_rel_gap": 0.0 if len(flat) <= 10_000 else 1e-4},
    )
    if solution.x is None:
        raise RuntimeError(f"the integer program of the ranks was not solved: {solution.message}")
    picked, start = [], 0
    for own in costs:
        # The solver's values are 0 or 1 only within its tolerance.
        picked.append(int(np.argmax(solution.x[start : start + len(own)])))
        start += len(own)
    return picked


def _pairs(number: int) -> list[tuple[float, float]]:
    """Return evenly spread pairs (α, γ): Halton's sequence in the bases 2 and 3."""
    return [(_ALPHA * _radical(i, 2), _GAMMA * _radical(i, 3)) for i in range(1, number + 1)]


def _radical(index: int, base: int) -> float:
    value, part = 0.0, 1.0
    while index:
        part /= base
        index, digit = divmod(index, base)
        value += digit * part
    return value
