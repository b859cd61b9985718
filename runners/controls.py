"""The controls of a sweep as its rows: as asked, or with ranks that follow from the bytes that are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import nn

from ..foundation.errors import UserError
from ..models.dtypes import OWN
from ..models.loading import DTYPES, own_dtype
from ..models.matrices import model_size
from ..models.quantised.model import dense_matrices
from ..models.quantised.scheme import Control, parse_control
from ..models.quantised.size import packed_bytes
from .config import MethodSpec, SweepConfig


class ControlRow(NamedTuple):
    """One row: the control as it was asked for, with the rank in its label where that was solved, and what it is."""

    spec: MethodSpec
    control: Control


@dataclass(frozen=True)
class _Reach:
    """Bytes of a corrected model by the rank of its correction, which they rise with.

    Attributes:
        skeleton: the dense model.
        control: with an open rank.
        width: bytes of a number that is not rounded.
        multiple: of ranks.
    """

    skeleton: nn.Module
    control: Control
    width: int
    multiple: int

    @property
    def most(self) -> int:
        """The largest multiple that is a rank of some matrix."""
        sides = (
            min(matrix.in_features, matrix.out_features)
            for matrix in dense_matrices(self.skeleton, self.control.scheme)
        )
        return max(max(sides) // self.multiple, 1) * self.multiple

    def bytes(self, rank: int) -> int:
        return packed_bytes(self.skeleton, self.control.scheme, self.width, rank)

    def rank_for(self, size: float) -> int | None:
        """Return the largest rank with which the weights take at most ``size`` bytes, None where none of them does.

        None too where more than the largest rank would be left over: such a row would not be of equal bytes.
        """
        low, high = 1, self.most // self.multiple
        if not self.bytes(self.multiple) <= size <= self.bytes(self.most):
            return None
        while low < high:
            # Rounded up: with the lower one of two neighbours as the middle, the loop would not end.
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes(middle * self.multiple) <= size else (low, middle - 1)
        return low * self.multiple


def control_rows(config: SweepConfig, skeleton: nn.Module, save_dtype: str) -> tuple[list[ControlRow], list[str]]:
    """Return the rows of a sweep's controls, and notes on shares of bytes that a control has no row at.

    Args:
        config: of the sweep.
        skeleton: the dense model.
        save_dtype: in which weights are saved, as `models.dtypes.save_dtypes` takes it.

    Raises:
        UserError: an embedding that cannot be rounded, or a correction that reaches none of the shares.
    """
    rows, notes = [], []
    for spec in config.controls:
        control = parse_control(spec.name, spec.options)
        dense_matrices(skeleton, control.scheme)
        if config.bytes is None or not control.free_rank:
            rows.append(ControlRow(spec, control))
            continue
        own = own_dtype(cast(Any, skeleton).config)
        width = DTYPES[own if save_dtype == OWN else save_dtype].itemsize
        reach, whole = _Reach(skeleton, control, width, config.rank_multiple), 2 * model_size(skeleton).parameters
        ranks = {share: reach.rank_for(share * whole) for share in sorted(config.bytes)}
        missed = ", ".join(f"{share:g}" for share, rank in ranks.items() if rank is None)
        least, most = (reach.bytes(rank) / whole for rank in (config.rank_multiple, reach.most))
        takes = f"{spec.shown} takes {least:.3f} to {most:.3f} of the bfloat16 model's bytes"
        solved = sorted({rank for rank in ranks.values() if rank is not None})
        if not solved:
            raise UserError(
                f"--bytes {missed} is out of reach: {takes}; ask for a share in between, name a rank "
                f"({spec.shown}{',' if spec.options else ':'}rank=16), or leave the control out"
            )
        if missed:
            notes.append(f"{takes}, so it has no row at {missed}")
        rows += [_at_rank(spec, control, rank) for rank in solved]
    return rows, notes


def _at_rank(spec: MethodSpec, control: Control, rank: int) -> ControlRow:
    assert control.correction is not None
    label = f"{spec.shown}{',' if ':' in spec.shown else ':'}rank={rank}"
    correction = control.correction.model_copy(update={"rank": rank})
    return ControlRow(spec.model_copy(update={"label": label}), control._replace(correction=correction))
