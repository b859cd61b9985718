"""One pruning run: the basis layers in the model and the budgets still to reach."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....foundation.finite import all_finite
from ...base import CalibrationData, NotFinite, TrainingLog
from ...fitted import Fitted
from ...linalg import merge
from ...ranks.budget import Allocation, Budget
from ...ranks.policies.base import parse_policy, policies
from ...ranks.units import ModelShape, Unit
from ...shrinking import shrink_parameter
from .curvature import CurvatureProbes
from .embedding import DenseEmbedding
from .final import BasisProbe
from .layer import BasisLinear, Shrink, whole
from .options import BasisSelectionOptions
from .placing import put_bases, put_merged
from .pruning import (
    above_share_of_mean,
    compensated_threshold,
    keep_largest,
    strongest,
    target_share,
    whole_prunings,
)

STATES = ("died", "kept", "freed")
"""What becomes of a basis: pruned, trained on, or turned into a new vector at the start."""

SHRINK_FROM = 512
"""Matrices of fewer bases keep the full length of w: there is nothing to gain, and in another length the gradient's
norm is summed in another order, which changes the last digits of what clipping leaves."""


class PruningRun:
    """The state of one pruning run.

    Args:
        method: its options.
        model: the dense model, whose linear layers are replaced by basis layers.
        fitted: the bases.
        budgets: the ratios to hand out.
        hand_out: called with the position of a budget and the merged model that meets it, for all but the deepest.
        data: task data for criteria and policies that ask the model; None for the others.
        shrink: makes a parameter in training shorter.
        prunings: how many there will be; None is the method's P.

    Attributes:
        budgets: from the lowest ratio to the highest.
        keep: K, the kept share that the schedule runs to, common to all matrices (layer scope) or of all together.
        kept_share: for each budget, the share of the sum of all singular values that one pruning at the start keeps,
            new vectors started from bases included.
        product: running product of the shares kept by the prunings so far, by matrix.
        used: what the training has used so far.
    """

    def __init__(
        self,
        method: BasisSelectionOptions,
        model: nn.Module,
        fitted: Fitted,
        budgets: Sequence[Budget],
        hand_out: Callable[[int, nn.Module], None],
        data: CalibrationData | None = None,
        shrink: Shrink = shrink_parameter,
        prunings: int | None = None,
    ) -> None:
        self.method, self.model, self.hand_out, self.data, self.shrink = method, model, hand_out, data, shrink
        self.prunings = prunings or method.prunings
        self.budgets = sorted(budgets, key=lambda budget: budget.ratio)
        self.dense_shape = method.shape(model)
        self.shape = method.shape(model, self.budgets[-1].ratio)
        self.extra = method.extra_vectors(self.dense_shape, self.budgets[-1])
        self.layers: dict[str, BasisLinear] = {}
        freed = 0.0
        self.spectra: dict[str, Tensor] = {}
        self.required = {name: p.requires_grad for name, p in model.named_parameters()}
        # Before the basis layers exist: their w and new vectors train whether or not the others do.
        for parameter in model.parameters():
            parameter.requires_grad_(method.train_others)
        self.embedding = next((DenseEmbedding(model, m) for m in method.targets(model) if m.embedding), None)
        for number, unit in enumerate(self.shape.units):
            factors = fitted.factors(unit.name)
            # The whole spectrum: what `drop_below` takes out is reported as died (`bases`). As only the end is cut off,
            # `kept` still counts in it.
            spectrum = factors.spectrum.float().cpu()
            if method.drop_below:
                factors = strongest(factors, method.drop_below, self.extra[unit.name] + 1)
            if method.new_vectors == "top":
                freed += float(factors.spectrum[: self.extra[unit.name]].sum())
            layer = put_bases(method, model, unit.name, self.embedding, factors, self.extra[unit.name], number)
            self.layers[unit.name] = layer
            # Bases that became new vectors (`top`) still have entries in w, which nothing reads.
            self._shrink(layer)
            self.spectra[unit.name] = spectrum
        self.product = dict.fromkeys(self.layers, 1.0)
        # By index into the spectrum and not by slot, so that prunings and `shrink` leave the sums in place.
        self.slope = {name: layer.weight_root.detach().new_zeros(layer.bases) for name, layer in self.layers.items()}
        self.observed = 0
        self.used = TrainingLog(0, 0, 0.0, 0.0)
        self.reached = self.prunings_done = 0
        self.met = False
        self.final_levels: dict[int, float] = {}
        self.probes = CurvatureProbes(method, model, self.layers, data) if method.criterion == "hessian" else None
        # Allocations rank bases by the criterion, which for the Hessian has no values before the first probe.
        if self.probes is not None:
            self.probes.run()
        plans = [self._allocate(budget) for budget in self.budgets]
        self.kept_share = [self._kept_share(plan, freed) for plan in plans]
        # The energy policy's level is a kept share, the threshold policy's is not: there K is counted. The schedule is
        # that of the bases alone: those that became new vectors count in `kept_share` and not in K.
        self.keep = plans[-1].level if method.scope == "layer" else self._kept_share(plans[-1], 0.0)

    def _scores(self, layer: BasisLinear, name: str) -> Tensor:
        s = layer.singular_values().float()
        if self.method.criterion == "s2":
            return s**2
        # s orders the bases that have had no gradient, and is the criterion until there is one at all.
        if self.method.criterion == "taylor" and self.observed:
            return (self.slope[name] / self.observed)[layer.kept].float() + 1e-12 * s
        if self.probes is not None:
            return self.probes.curvature.importance(name)
        return s

    def _kept_share(self, plan: Allocation, freed: float) -> float:
        kept_sum = total = freed
        for name, mask in self._exact(plan).items():
            s = self.layers[name].singular_values()
            kept_sum, total = kept_sum + float(s[mask].sum()), total + float(s.sum())
        return kept_sum / total if total else 1.0

    def observe(self) -> None:
        """Add this step's |w · ∂L/∂w| / 2 = |s · ∂L/∂s| to the running sums of the Taylor criterion."""
        if self.method.criterion != "taylor":
            return
        self.observed += 1
        for name, layer in self.layers.items():
            if layer.weight_root.grad is not None:
                slope = (whole(layer.weight_root.grad) * whole(layer.weight_root.detach())).abs() / 2
                self.slope[name] = self.slope[name].to(slope.device)
                self.slope[name][layer.kept] += slope[layer.slots]

    def state_dict(self) -> dict[str, Any]:
        """Return what prunings have changed so far (a `methods.base.Stateful`); models handed out are left out."""
        return {
            "layers": {name: layer.indices() for name, layer in self.layers.items()},
            "product": dict(self.product),
            "slope": dict(self.slope),
            "observed": self.observed,
            "reached": self.reached,
            "prunings_done": self.prunings_done,
            "met": self.met,
            "final_levels": dict(self.final_levels),
            "probes": self.probes.state_dict() if self.probes is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in a run of the same arguments that has not pruned yet."""
        for name, layer in self.layers.items():
            layer.restore(**state["layers"][name])
            self.slope[name] = state["slope"][name].to(layer.kept.device)
        self.product, self.final_levels = state["product"], state["final_levels"]
        self.observed, self.reached = state["observed"], state["reached"]
        self.prunings_done, self.met = state["prunings_done"], state["met"]
        if self.probes is not None:
            self.probes.load_state_dict(state["probes"])

    def share_bases(self) -> None:
        """Let FSDP2 shard the frozen bases too; prunings cut nothing until `gathered`."""
        for layer in self.layers.values():
            layer.share()

    def gathered(self, model: nn.Module) -> None:
        """Go on with the whole model that a training over shares ended with, and cut what it pruned."""
        self.model = model
        for name in self.layers:
            layer = model.get_submodule(name)
            if not isinstance(layer, BasisLinear):
                raise TypeError(f"{name} is no basis layer any more")
            layer.cut()
            self.layers[name] = layer
            self.slope[name] = self.slope[name].to(layer.kept.device)

    def _unit(self, unit: Unit) -> Unit:
        """Return a unit whose largest rank is what is left of its layer."""
        top = min(self.layers[unit.name].rank, unit.max_rank)
        return replace(unit, max_rank=top, min_rank=min(unit.min_rank, top))

    def _spectra(self, units: Sequence[Unit]) -> dict[str, Tensor]:
        scores = {unit.name: self._scores(self.layers[unit.name], unit.name) for unit in units}
        # New vectors have no score: to a policy, ranks that a spectrum lacks come first (`_shares.tail_energy`).
        return {
            unit.name: scores[unit.name].sort(descending=True).values[: unit.max_rank - self.layers[unit.name].extra]
            for unit in units
        }

    def _allocate(self, budget: Budget) -> Allocation:
        """Return the budget-exact ranks under the run's rule, given the bases that are still there."""
        policy = policies.get("energy" if self.method.scope == "layer" else "threshold")()
        units = tuple(self._unit(unit) for unit in self.shape.units)
        return budget.allocate(ModelShape(self.shape.parameters, units), policy, self._spectra(units))

    def _allocate_last(self, budget: Budget) -> Allocation:
        """Return the budget-exact ranks under the final policy.

        A policy expects spectra whose squares are what is lost; scores that are losses already give their roots.
        """
        policy = parse_policy(self.method.final_policy)
        units = tuple(self._unit(unit) for unit in self.shape.units)
        spectra = self._spectra(units)
        if self.method.criterion != "s":
            spectra = {name: scores.clamp_min(0).sqrt() for name, scores in spectra.items()}
        loss = measured = None
        if policy.needs_loss or policy.measures:
            loss = BasisProbe(
                self.model, self.layers, self._mask, self.data, self.method.final_samples, policy.asks()
            ).loss
            measured = policy.measure(units, spectra, loss) if policy.measures else None
        allocation = budget.allocate(ModelShape(self.shape.parameters, units), policy, spectra, measured, loss)
        self.final_levels[self.reached] = allocation.level
        return allocation

    def prune(self) -> None:
        """Do the next pruning of the schedule; the last one meets the deepest budget exactly.

        A pruning that would pass a budget stops at it instead: the model at that point is handed out if it is a
        shallower one of a trajectory, and the schedule goes on from it. The pruning that meets a budget is the one
        that follows the final policy, if there is one.
        """
        self.prunings_done += 1
        if self.met:
            return
        if self.probes is not None:
            self.probes.run()
        final = self.prunings_done == self.prunings
        while True:
            budget = self.budgets[self.reached]
            exact = self._allocate(budget)
            masks = None if final else self._scheduled(self.prunings_done)
            if masks is not None and self._size(masks) >= exact.parameters:
                self._apply(masks)
                return
            self._apply(self._exact(self._allocate_last(budget) if self.method.final_policy else exact))
            if self.reached == len(self.budgets) - 1:
                self.met = True
                return
            # Merging replaces the basis layers, which the run goes on training.
            self.hand_out(self.reached, self.merged(copy.deepcopy(self.model)))
            self.reached += 1
            # The last pruning goes on through all budgets that are left, since no other follows it.
            if not final:
                return

    def _scheduled(self, pruning: int) -> dict[str, Tensor]:
        """Return the masks of the authors' rule, without prunings that would not bring a matrix below break-even."""
        before_last = 1 - self.method.final_share if self.method.final_policy else 1.0
        share = target_share(self.keep, pruning * before_last, self.prunings, self.method.schedule)
        if self.method.scope == "global":
            pool = torch.cat([self._scores(layer, name) for name, layer in self.layers.items()])
            # All matrices have the same product in this scope (`_apply`), so any name gives the threshold.
            theta = self._threshold(share, before_last, next(iter(self.layers)))
            limit = pool[keep_largest(pool, theta)].min()
            masks = {name: self._at_least_one(self._scores(layer, name), limit) for name, layer in self.layers.items()}
        else:
            masks = {
                name: keep_largest(self._scores(layer, name), self._threshold(share, before_last, name))
                for name, layer in self.layers.items()
            }
        if self.method.guard:
            for unit in self.shape.units:
                layer = self.layers[unit.name]
                if not unit.saves(int(masks[unit.name].sum()) + layer.extra):
                    masks[unit.name] = torch.ones_like(masks[unit.name])
        return self._aligned(masks)

    def _threshold(self, share: float, before_last: float, name: str) -> float:
        """Return the share of what is left of a matrix that this pruning keeps."""
        if self.method.threshold == "compensated":
            return compensated_threshold(share, self.product[name])
        epochs = max(1, round(self.method.prune_epochs)) if self.method.counting == "epoch" else 1
        return float(self.keep ** (before_last / whole_prunings(self.method.prunings, epochs)))

    def _aligned(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return masks that leave each layer a multiple of ranks, or all it has: what is cut now never grows back."""
        multiple = self.budgets[-1].multiple
        if multiple == 1:
            return masks
        ranks = {name: int(mask.sum()) + self.layers[name].extra for name, mask in masks.items()}
        return {name: self._mask(name, math.ceil(rank / multiple) * multiple) for name, rank in ranks.items()}

    @staticmethod
    def _at_least_one(scores: Tensor, limit: Tensor) -> Tensor:
        return scores >= torch.minimum(limit, scores.max())

    def _mask(self, name: str, rank: int) -> Tensor:
        """Return which bases of a layer survive at a rank: the best ones that its new vectors leave room for."""
        scores = self._scores(self.layers[name], name)
        mask = torch.ones_like(scores, dtype=torch.bool)
        mask[scores.argsort(descending=True, stable=True)[rank - self.layers[name].extra :]] = False
        return mask

    def _exact(self, allocation: Allocation) -> dict[str, Tensor]:
        return {
            name: self._mask(name, allocation.ranks[name])
            if name in allocation.ranks
            else torch.ones_like(layer.kept, dtype=torch.bool)
            for name, layer in self.layers.items()
        }

    def _size(self, masks: Mapping[str, Tensor]) -> int:
        # As in `merged`: kept bases and new vectors may be more than min(m, n), which the merge cuts off.
        return self.shape.untouched + sum(
            unit.stored(
                min(int(masks[unit.name].sum()) + self.layers[unit.name].extra, unit.max_rank), self.method.guard
            )
            for unit in self.shape.units
        )

    def _apply(self, masks: Mapping[str, Tensor]) -> None:
        before = after = 0.0
        for name, layer in self.layers.items():
            scores = self._scores(layer, name).double()
            total, kept_sum = float(scores.sum()), float(scores[masks[name]].sum())
            before, after = before + total, after + kept_sum
            if self.method.scope == "layer" and total > 0:
                self.product[name] *= kept_sum / total
            layer.prune(masks[name])
            self._shrink(layer)
        if self.method.scope == "global" and before > 0:
            self.product = {name: value * after / before for name, value in self.product.items()}

    def _shrink(self, layer: BasisLinear) -> None:
        if layer.bases >= SHRINK_FROM:
            layer.shrink(self.shrink)

    def merged(self, model: nn.Module) -> nn.Module:
        """Replace the basis layers of ``model`` by two linears each, or by a dense one where that is not larger.

        Raises:
            NotFinite: the weights are finite, and a matrix that they make is not.
        """
        for unit in self.shape.units:
            layer = model.get_submodule(unit.name)
            if not isinstance(layer, BasisLinear):
                raise TypeError(f"{unit.name} is no basis layer any more")
            rank = min(layer.rank, unit.max_rank)
            try:
                factors = self._merge(layer, rank, unit)
            except OverflowError as error:
                raise self._not_finite(unit.name) from error
            put_merged(model, unit.name, self.embedding, layer, factors)
            if not all(all_finite(parameter) for parameter in model.get_submodule(unit.name).parameters()):
                raise self._not_finite(unit.name)
        for name, parameter in model.named_parameters():
            # The dense model has no names of factors; `Recovery.recover` expects them to require a gradient.
            parameter.requires_grad_(self.required.get(name, True))
            parameter.grad = None
        return model

    def _not_finite(self, name: str) -> NotFinite:
        steps, tokens = self.used.steps, self.used.tokens
        return NotFinite(f"the bases of {name} make no finite matrix after {steps:,} steps", steps, tokens)

    def _merge(self, layer: BasisLinear, rank: int, unit: Unit) -> tuple[Tensor, Tensor] | None:
        """Return A (r, n) and B (m, r) in float64; None for a layer that becomes dense again."""
        # With `drop_below` only the SVD says whether the rank that is left is below break-even.
        if not (self._factorised(unit, rank) or self.method.drop_below):
            return None
        u, s, vt = layer.merged(rank)
        if self.method.drop_below:
            strong = above_share_of_mean(s, self.method.drop_below, min(layer.in_features, layer.out_features))
            multiple = self.budgets[-1].multiple
            rank = min(rank, math.ceil(strong / multiple) * multiple)
            if not self._factorised(unit, rank):
                return None
            u, s, vt = u[:, :rank], s[:rank], vt[:rank]
        root = s.sqrt() if self.method.split == "even" else torch.ones_like(s)
        # The clamp is for split=even, where a component of s = 0 would be 0 / 0.
        return (s / root.clamp_min(1e-300))[:, None] * vt, u * root

    def _factorised(self, unit: Unit, rank: int) -> bool:
        return not self.method.guard or unit.saves(rank)

    def bases(self) -> dict[str, Tensor]:
        """Return what became of every basis so far, on the CPU, four tensors a matrix of k bases and d new vectors.

        ``<matrix>.before`` (k,) the spectrum of the fit; ``.after`` (k,) the trained singular values, 0 where pruned or
        freed; ``.state`` (k,) uint8, see `STATES`; ``.new`` (d,) the singular values of the new vectors' product.
        """
        bases: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            before = self.spectra[name]
            after, state = torch.zeros_like(before), torch.zeros(len(before), dtype=torch.uint8)
            indices = layer.kept.cpu()
            after[indices] = layer.singular_values().float().cpu()
            state[indices] = STATES.index("kept")
            state[: layer.freed] = STATES.index("freed")
            new = merge(layer.extra_left, layer.extra_right, layer.extra)[1].float().cpu()
            bases |= {f"{name}.before": before, f"{name}.after": after, f"{name}.state": state, f"{name}.new": new}
        return bases

    def details(self, index: int) -> dict[str, Any]:
        """Return what a reader of the record needs to know about the run, for one of its budgets."""
        details = {
            "keep": self.keep,
            "kept_share": self.kept_share[index],
            "additional_dimension": dict(self.extra),
            "trajectory_ratios": [budget.ratio for budget in self.budgets],
        }
        if index in self.final_levels:
            details["final_level"] = self.final_levels[index]
        if self.probes is not None:
            details |= {"hessian_passes": 2 * self.probes.done, "hessian_tokens": self.probes.tokens}
        return details
