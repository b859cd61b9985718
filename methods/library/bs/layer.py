"""The layer that Basis Selection trains: frozen bases, trained singular values, a few free vectors."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ....foundation.finite import all_finite
from ...fitted import Factors
from ...linalg import merge
from .selected import SelectedLinear

Start = Literal["zero", "top"]

Shrink = Callable[[nn.Parameter, Tensor], bool]
"""Keeps only the given entries of a parameter, see `methods.base.Trainer.shrink`; False where it cannot."""


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over processes, which all of them must then ask for."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


class BasisLinear(nn.Module):
    """y = Σ_kept w_i² u_i (v_iᵀ x) + Ũ Ṽ x + bias; exactly the dense layer at the start.

    Args:
        factors: W as an ordered sum of rank-one parts; u_i, v_i are the parts scaled to leave s_i out.
        bias: (m,) or None; kept (the authors' forward loses it).
        extra: d, number of new vectors.
        start: ``zero`` starts Ũ at 0 and Ṽ ~ N(0, 1/d), the authors' choice; ``top`` hands the d strongest bases over
            to Ũ, Ṽ, which frees them.
        seed: of Ṽ.
        dtype: of all parameters.
        bases_dtype: of the bases; that of the parameters by default. Narrower ones halve what is frozen; autocast to
            the same dtype computes the very same with them, everything else rounds.

    Parameters: ``weight_root`` w, so that s = w² >= 0; ``extra_left`` (m, d); ``extra_right`` (d, n); ``bias``.
    Buffers (frozen, not trained): ``left`` (m, kept), ``right`` (kept, n), ``kept`` indices into the spectrum (k,),
    ``slots`` indices of the same bases into w. A pruned basis leaves the buffers at once, so it costs nothing, gets no
    gradient and cannot come back. It leaves w, which starts with k entries, when `shrink` can make w shorter; where it
    cannot (w is copied or sharded over processes), w keeps its length and the entry is never read again. ``bases`` is
    k, ``freed`` is how many of the strongest bases became new vectors (start ``top``).

    Between `share` and `cut` the bases are parameters that need no gradient, so that FSDP2 shards them, and keep their
    shapes; a pruned basis is left out when a product is made.
    """

    left: Tensor
    right: Tensor
    kept: Tensor
    slots: Tensor

    def __init__(
        self,
        factors: Factors,
        bias: Tensor | None,
        extra: int,
        start: Start,
        seed: int,
        dtype: torch.dtype,
        bases_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        spectrum = factors.spectrum.clamp_min(0).to(dtype)
        unit = torch.where(spectrum > 0, spectrum, torch.ones_like(spectrum)).sqrt()
        self.out_features, self.in_features = factors.left.shape[0], factors.right.shape[1]
        self.weight_root = nn.Parameter(spectrum.sqrt())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        # Divided by √s on both sides, u_i v_iᵀ is the part without s_i, however the fit split s_i between them.
        left, right = factors.left.to(dtype) / unit, factors.right.to(dtype) / unit[:, None]
        first = 0
        if start == "top":
            first = extra
            extra_left, extra_right = factors.left[:, :extra].to(dtype), factors.right[:extra].to(dtype)
        else:
            # On the meta device, where memory is estimated, there are no numbers to draw.
            # Elsewhere they are drawn on the CPU, so that a seed gives the same vectors on every device.
            generator = None if left.is_meta else torch.Generator().manual_seed(seed)
            device = left.device if left.is_meta else torch.device("cpu")
            noise = torch.randn(extra, self.in_features, generator=generator, device=device) / max(extra, 1) ** 0.5
            extra_left = torch.zeros(self.out_features, extra, dtype=dtype, device=left.device)
            extra_right = noise.to(dtype)
        # Without new vectors nothing of them is used, and DDP would wait for their gradients.
        self.extra_left = nn.Parameter(extra_left.to(left.device).clone(), extra > 0)
        self.extra_right = nn.Parameter(extra_right.to(left.device).clone(), extra > 0)
        kept = torch.arange(first, len(spectrum), device=left.device)
        self._register("left", left[:, first:].to(bases_dtype or dtype, copy=True))
        self._register("right", right[first:].to(bases_dtype or dtype, copy=True))
        self._register("kept", kept)
        self._register("slots", kept.clone())
        self.bases, self.freed, self.shared = len(spectrum), first, False

    def _register(self, name: str, buffer: Tensor) -> None:
        # Not persistent: who goes on from a checkpoint has the bases from the fit and their indices by `restore`.
        self.register_buffer(name, buffer, persistent=False)

    @property
    def extra(self) -> int:
        """d, how many new vectors there are."""
        return self.extra_right.shape[0]

    @property
    def rank(self) -> int:
        """Rank of the layer as it is: kept bases plus new vectors."""
        return len(self.kept) + self.extra

    def singular_values(self) -> Tensor:
        """Return the trained singular values s = w² of the kept bases, shape (kept,)."""
        return self._of_kept(whole(self.weight_root.detach())) ** 2

    def roots(self) -> Tensor:
        """Return w of the kept bases, shape (kept,); gradients flow into `weight_root`."""
        return self._of_kept(self.weight_root)

    def _of_kept(self, values: Tensor) -> Tensor:
        # The slots ascend, so as many of them as entries are all entries.
        return values if len(self.slots) == len(values) else values[self.slots]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n) to (..., m) without building the dense weight."""
        linear = nn.functional.linear
        left, right = self.left, self.right
        # Narrow bases: autocast casts operands by itself, and without it a linear of mixed dtypes is refused.
        if left.dtype != self.weight_root.dtype and not torch.is_autocast_enabled(x.device.type):
            left, right = left.to(x.dtype), right.to(x.dtype)
        s = self.roots() ** 2
        if len(s) == len(right):
            y = linear(linear(x, right) * s, left, self.bias)
        else:
            # `kept` counts from the start of the spectrum, the bases from the first one that was not freed.
            rows = self.kept - self.freed
            y = SelectedLinear.apply(SelectedLinear.apply(x, right, rows, 0) * s, left, rows, 1)
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y + linear(linear(x, self.extra_right), self.extra_left) if self.extra else y

    def prune(self, mask: Tensor) -> None:
        """Drop the kept bases whose mask entry is False, shape (kept,), for good."""
        if not self.shared:
            self.left = self.left[:, mask].contiguous()
            self.right = self.right[mask].contiguous()
        self.kept, self.slots = self.kept[mask], self.slots[mask]

    def share(self) -> None:
        """Make the bases parameters whose shapes stay, for a training in which each process holds a share of them.

        Nothing may have been pruned.
        """
        for name in ("left", "right"):
            bases = getattr(self, name)
            # The buffer goes first: a module refuses a parameter under the name of one.
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(bases, requires_grad=False))
        self.shared = True

    def cut(self) -> None:
        """Take out what was pruned since `share`; the parameters must be whole again."""
        rows = self.kept - self.freed
        bases_by_side = {
            "left": self.left.detach()[:, rows].contiguous(),
            "right": self.right.detach()[rows].contiguous(),
        }
        for name, bases in bases_by_side.items():
            delattr(self, name)
            self._register(name, bases)
        self.shared = False

    def indices(self) -> dict[str, Tensor]:
        """Return the shapes that prunings and `shrink` left, for `restore`."""
        return {"kept": self.kept, "slots": self.slots, "entries": torch.tensor(len(self.weight_root))}

    def restore(self, kept: Tensor, slots: Tensor, entries: Tensor) -> None:
        """Give a layer that nothing was pruned from yet the shapes that `indices` tells of; w gets no numbers.

        To be called before anything has the layer's parameters in shares or copies.
        """
        self.prune(torch.isin(self.kept, kept.to(self.kept.device)))
        self.slots = slots.to(self.kept.device)
        self.weight_root.data = self.weight_root.data[: int(entries)].clone()

    def shrink(self, shrink: Shrink) -> None:
        """Let `weight_root` hold the kept bases alone, if ``shrink`` can do that."""
        if len(self.slots) < len(self.weight_root) and shrink(self.weight_root, self.slots):
            self.slots = torch.arange(len(self.slots), device=self.slots.device)

    def merged(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the SVD U (m, r), s (r,), Vᵀ (r, n) of the layer's matrix in float64.

        Raises:
            OverflowError: the trained roots are finite and their squares are not.
        """
        with torch.no_grad():
            left = torch.cat([self.left * self.roots() ** 2, self.extra_left], 1)
            right = torch.cat([self.right, self.extra_right], 0)
        if not all_finite(left):
            raise OverflowError("the squares of the trained roots")
        return merge(left, right, rank)

    def dense_weight(self) -> Tensor:
        """Return the layer's matrix, shape (m, n)."""
        with torch.no_grad():
            frozen = (self.left.double() * self.roots().double() ** 2) @ self.right.double()
            return (frozen + self.extra_left.double() @ self.extra_right.double()).to(self.weight_root.dtype)

    def dense_layer(self) -> nn.Linear:
        """Return the layer as a dense one."""
        weight, bias = self.dense_weight(), self.bias
        dense = nn.Linear(self.in_features, self.out_features, bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            dense.weight.copy_(weight)
            if bias is not None:
                dense.bias.copy_(bias)
        return dense
