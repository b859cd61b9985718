"""Which bases survive: the rules of Basis Selection on plain tensors."""

import math
from typing import Literal

import torch
from torch import Tensor

from ...fitted import Factors

Schedule = Literal["exponential", "linear"]


def keep_largest(scores: Tensor, theta: float) -> Tensor:
    """Return the mask of the entries that one pruning keeps, shape (k,), bool.

    Authors' code, ``methods/basis_selection.py:select_basis_layer``: sort the scores, take the smallest prefix whose
    sum reaches ``theta`` times the sum of all, and keep every entry not below the last one of that prefix (ties
    survive). At least one entry survives.

    Args:
        scores: (k,) non-negative, pruned entries left out.
        theta: share of the sum to keep, in (0, 1].
    """
    ordered = scores.double().sort(descending=True).values
    sums = ordered.cumsum(0)
    # The smallest prefix that reaches the whole sum leaves out zeros; where all are zero there is nothing to rank by.
    if theta >= 1.0 or sums[-1] <= 0:
        return scores > 0 if sums[-1] > 0 else torch.ones_like(scores, dtype=torch.bool)
    last = int(torch.searchsorted(sums, theta * sums[-1]))
    return scores.double() >= ordered[min(last, len(ordered) - 1)]


def target_share(keep: float, pruning: float, prunings: int, schedule: Schedule = "exponential") -> float:
    """Return the share of the first sum that should be left after ``pruning`` of ``prunings`` (1-based).

    Exponential: K^{p/P}, the schedule that the authors' learning-rate factor implies. Linear: 1 - (1-K)·p/P.
    """
    part = pruning / prunings
    return keep**part if schedule == "exponential" else 1.0 - (1.0 - keep) * part


def compensated_threshold(share: float, product: float) -> float:
    """Return this pruning's threshold so that the running product of kept shares arrives at ``share``.

    A constant threshold K^{1/P} stalls on small layers: each call must keep at least θ of the sum, and once the
    smallest basis weighs more than 1-θ nothing is pruned any more.

    Args:
        share: what should be left of the first sum after this pruning.
        product: Π (sum kept / sum before) over the prunings so far.
    """
    return min(1.0, share / product) if product > 0 else 1.0


def pruning_steps(keep_steps: int, prune_steps: int, prunings: int) -> list[int]:
    """Return the optimizer step before whose update each pruning happens: evenly spaced, the first after the keeping.

    Several prunings fall on one step when there are more prunings than steps.
    """
    return [keep_steps + pruning * prune_steps // prunings for pruning in range(prunings)]


def whole_prunings(prunings: int, epochs: int) -> int:
    """Return P', the largest multiple of the epochs up to P, at least one for each: what the authors' K^(1/P') uses."""
    return max(1, prunings // epochs) * epochs


def pruning_steps_by_epoch(keep_steps: int, prune_steps: int, epochs: float, prunings: int) -> list[int]:
    """Return the optimizer step before which each pruning happens, counted in each epoch as the authors' code does.

    Authors' code, ``methods/custom_trainer.py:BSTrainer``: P is cut to P', a multiple of the E epochs after the
    keeping; an epoch of n steps has a pruning at each step that ⌊n / (P'/E)⌋ divides, the first included. Because of
    the rounding there may be more than P' of them. Where an epoch has fewer steps than prunings the authors divide by
    zero, and here each step has one.

    Args:
        keep_steps: before the first pruning.
        prune_steps: from there to the merge.
        epochs: E; a fraction is rounded, to at least 1.
        prunings: P.
    """
    whole_epochs = max(1, round(epochs))
    per_epoch = whole_prunings(prunings, whole_epochs) // whole_epochs
    due: list[int] = []
    for epoch in range(whole_epochs):
        first, end = (keep_steps + number * prune_steps // whole_epochs for number in (epoch, epoch + 1))
        due += range(first, end, max(1, (end - first) // per_epoch))
    return due


def above_share_of_mean(singular_values: Tensor, share: float, values: int) -> int:
    """Return how many singular values are above a share of the mean of all, at least 1.

    Authors' code, ``methods/basis_selection.py:rank_cal``, with a share of 1e-3.

    Args:
        singular_values: (r,) descending, the others being zero.
        share: 0 counts all that are above zero.
        values: how many there are with the zeros, min(m, n).
    """
    mean = float(singular_values.double().sum()) / values
    return max(1, int((singular_values.double() > share * mean).sum()))


def strongest(factors: Factors, share: float, least: int) -> Factors:
    """Return the factors without parts whose singular value is at most a share of the mean; they are descending.

    Args:
        factors: of one matrix, at full rank.
        share: see `above_share_of_mean`.
        least: so many stay.
    """
    count = max(above_share_of_mean(factors.spectrum, share, len(factors.spectrum)), least)
    return Factors(factors.left[:, :count], factors.right[:count], factors.spectrum[:count])


def lr_factor(keep: float, epochs: float) -> float:
    """Return the factor on the learning rate while pruning (authors' run script).

    The mean of √(1/k_t) over training while k_t stays 1 for the first of ``epochs`` epochs and then falls
    exponentially to ``keep``: (1 - 1/E)·2(√(1/K) - 1)/ln(1/K) + 1/E.
    """
    if keep >= 1.0:
        return 1.0
    log = math.log(1.0 / keep)
    return (1.0 - 1.0 / epochs) * 2.0 * (math.sqrt(1.0 / keep) - 1.0) / log + 1.0 / epochs
