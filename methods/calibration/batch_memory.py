"""What a batch takes while statistics are gathered, by running the model's code and the hooks on tensors without data.

See `models.pass_memory`: what is alive is counted, and scratch memory inside kernels is not. Sums (Gram matrices) and
hidden states that wait between blocks are not part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from ...foundation.remembered import remembered
from ...models.blocks import Blocks, find_blocks, forwards, hidden_in, tensors_in
from ...models.pass_memory import Live, fingerprint, make_fake, marked, shortened, without_data
from ...models.streamed import NotStreamable
from ..groups import Group
from .fisher import FisherSums
from .moments import Reached
from .statistics import example_losses, only_embedding_requires_grad, watch_output_gradient

_FEW, _MORE = 2, 3
"""Blocks of the two models that are run; what more blocks take is extrapolated from them, phase by phase."""
_ROWS = 1024  # tokens that `moments.add_gram` has in float64 at a time


@dataclass(frozen=True)
class BatchPeak:
    """Bytes at the peak of one batch, beside weights, sums and what waits.

    Attributes:
        whole: of a pass through a model in memory.
        block: of a pass through one block on hidden states, gradients back to them included.
        behind: of what comes behind the blocks, likewise; 0 where nothing runs there.
        given: what a block is given beside hidden states: masks, rotary positions.
    """

    whole: int
    block: int
    behind: int
    given: int


_known: dict[str, BatchPeak] = {}


def batch_peak(
    skeleton: nn.Module, names: Sequence[str], examples: int, tokens: int, gradients: bool, inputs_held: bool
) -> BatchPeak | None:
    """Return the peak of one batch in float32, or None where the model's code cannot be run without data.

    Args:
        skeleton: on the meta device, or anywhere else.
        names: of the linear layers whose inputs, or outputs' gradients, are summed; where inputs are held, of the token
            embedding too.
        examples, tokens: shape of the batch.
        gradients: whether gradients go back, to the input embedding.
        inputs_held: with gradients, whether layers' inputs are held for them (Fisher information).
    """
    key = fingerprint(skeleton, "statistics", sorted(names), examples, tokens, gradients, inputs_held, __file__)
    if key not in _known:
        asked = examples, tokens, gradients, inputs_held
        try:
            counted = remembered(key, lambda: astuple(_count(skeleton, set(names), *asked)))
        except Exception:  # foreign code may ask for values, which fake tensors do not have
            return None
        _known[key] = BatchPeak(*counted)
    return _known[key]


def _count(
    skeleton: nn.Module, names: set[str], examples: int, tokens: int, gradients: bool, inputs_held: bool
) -> BatchPeak:
    try:
        blocks = find_blocks(skeleton)
    except NotStreamable:
        blocks = Blocks((), False)
    run = _Run(skeleton, blocks, names, examples, tokens, gradients, inputs_held)
    count = len(blocks.names)
    if count <= _MORE:
        whole = max(run.whole(count).values())
    else:
        few, more = run.whole(_FEW), run.whole(_MORE)
        # Blocks between the first and the last take something between the two, as in `models.pass_memory`.
        whole = max(few[phase] + (count - _FEW) * (more[phase] - few[phase]) for phase in few if phase != "between")
    if not count:
        return BatchPeak(whole, whole, 0, 0)
    return BatchPeak(whole, *run.parts())


@dataclass(frozen=True)
class _Run:
    skeleton: nn.Module
    blocks: Blocks
    names: set[str]
    examples: int
    tokens: int
    gradients: bool
    inputs_held: bool

    @contextmanager
    def _model(self, count: int) -> Iterator[tuple[Any, Callable[[], Any]]]:
        """Give a model with its first blocks and a function that runs a batch through it."""
        model = shortened(self.skeleton, list(self.blocks.names), count).eval()
        with without_data():
            make_fake(model, torch.float32)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            ids = torch.zeros(self.examples, self.tokens, dtype=torch.long)
            mask = torch.ones_like(ids)
            with torch.set_grad_enabled(self.gradients):
                yield model, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def whole(self, count: int) -> dict[str, int]:
        """Return the peaks of a pass by phase."""
        with (
            self._model(count) as (model, run),
            Live([*model.parameters(), *model.buffers()]) as live,
            self._gradient_of(model) as embedding,
            marked(model, list(self.blocks.names[:count]), live) if self.gradients else contextlib.nullcontext(),
            self._watching(model),
            contextlib.suppress(Reached),
        ):
            logits = run()
            if embedding is not None:
                torch.autograd.grad(self._loss(logits), embedding)
        return live.peaks

    @contextmanager
    def _gradient_of(self, model: nn.Module) -> Iterator[Tensor | None]:
        if not self.gradients:
            yield None
            return
        with only_embedding_requires_grad(model) as embedding:
            yield embedding

    def parts(self) -> tuple[int, int, int]:
        """Return the peak of one block, of what is behind the blocks, and what a block is given."""
        name = self.blocks.names[0]
        with self._model(1) as (model, run):
            calls: list[tuple[Any, Any]] = []
            leaves: list[Tensor] = []

            def enter(*args: Any, **kwargs: Any) -> Any:
                calls.append((args, kwargs))
                leaves.append(hidden_in(args, kwargs).detach().requires_grad_(self.gradients))
                return self.blocks.wrap(leaves[0])

            outside = any(self.blocks.owner(layer) is None for layer in self.names)
            with (
                forwards(model, {name: enter}),
                Live([*model.parameters(), *model.buffers()]) as live,
                self._watching(model),
                contextlib.suppress(Reached),
            ):
                logits = run()
                if self.gradients:
                    torch.autograd.grad(self._loss(logits), leaves[0])
            behind = max(live.peaks.values()) if outside or self.gradients else 0
            args, kwargs = calls[0]
            hidden = hidden_in(args, kwargs)
            own = hidden.detach().requires_grad_(self.gradients)
            # By storage, so that views of one tensor count once.
            given = {t.untyped_storage()._cdata: t for t in tensors_in((args, kwargs)) if t is not hidden}
            kwargs = {key: own if value is hidden else value for key, value in kwargs.items()}
            args = tuple(own if value is hidden else value for value in args)
            with (
                Live([*model.parameters(), *model.buffers(), own, *given.values()]) as live,
                self._watching(model),
                contextlib.suppress(Reached),
            ):
                output = self.blocks.unwrap(model.get_submodule(name)(*args, **kwargs))
                if self.gradients:
                    torch.autograd.grad(output, own, torch.empty_like(output))
            states = own.untyped_storage().nbytes()  # read back from files, they are copies
            return max(live.peaks.values()) + states, behind, sum(t.untyped_storage().nbytes() for t in given.values())

    def _loss(self, logits: Tensor) -> Tensor:
        return example_losses(logits, torch.zeros(self.examples, self.tokens, dtype=torch.long)).sum()

    @contextmanager
    def _watching(self, model: nn.Module) -> Iterator[None]:
        """Do what `MomentSums`, `FisherSums` or `GradientSums` do with each batch, sums left out."""
        names = [name for name, _ in model.named_modules() if name in self.names]
        if self.gradients and self.inputs_held:
            sums = FisherSums(names, "in")
            sums.begin(self.examples)
            with sums.watching(model):
                yield
            return
        inputs: list[ReferenceType[Tensor]] = []
        last = names[-1] if names else ""

        def see(name: str) -> Callable[..., None]:
            def forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                if not any(given() is args[0] for given in inputs):
                    _sum(args[0])
                inputs.append(ref(args[0]))  # as `MomentSums` does
                if name == last:
                    raise Reached

            return forward

        modules = [model.get_submodule(name) for name in names]
        if self.gradients:
            handles = [watch_output_gradient(module, _sum) for module in modules]
        else:
            pairs = zip(names, modules, strict=True)
            handles = [module.register_forward_pre_hook(see(name)) for name, module in pairs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _sum(values: Tensor) -> None:
    rows = values.detach().reshape(-1, values.shape[-1]).clone()  # without padding
    _ = rows[:_ROWS].double()


def guess(skeleton: Any, groups: Sequence[Group], examples: int, tokens: int, gradients: bool) -> BatchPeak:
    """Estimate what `batch_peak` cannot count: inputs and outputs of linear layers, attention scores, logits.

    Args:
        skeleton: on the meta device, or anywhere else.
        groups: of the layers that are watched.
        examples, tokens, gradients: as in `batch_peak`.
    """
    config, rows = skeleton.config.get_text_config(), examples * tokens
    blocks = max(int(getattr(config, "num_hidden_layers", None) or 1), 1)
    members = [member for group in groups for member in group.members]
    sides = 4 * rows * sum(member.in_features + member.out_features for member in members)
    scores = 8 * examples * int(getattr(config, "num_attention_heads", None) or 1) * tokens**2
    widest = 20 * rows * max(group.in_features for group in groups)  # an input as float32, and in float64
    logits = 4 * rows * int(config.vocab_size)
    block = (2 if gradients else 1) * (sides // blocks + scores) + widest
    if not gradients:
        return BatchPeak(max(sides + widest, logits), block, logits, 0)
    return BatchPeak(2 * (sides + blocks * scores) + 4 * logits, block, 4 * logits, 0)


def shared_inputs(skeleton: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return for each linear layer the first one that is given the very same input; itself where that is not known."""
    key = fingerprint(skeleton, "shared", sorted(names), __file__)
    try:
        return dict(remembered(key, lambda: _shared(skeleton, set(names))))
    except Exception:  # foreign code may ask for values, which fake tensors do not have
        return {name: name for name in names}


def _shared(skeleton: nn.Module, names: set[str]) -> dict[str, str]:
    model = shortened(skeleton, [], 0).eval()
    seen: list[tuple[str, Tensor]] = []
    first = {name: name for name in names}

    def see(name: str) -> Callable[..., None]:
        def forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            first[name] = next((other for other, given in seen if given is args[0]), name)
            seen.append((name, args[0]))

        return forward

    with without_data(), torch.no_grad():
        make_fake(model, torch.float32)
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(see(name))
        ids = torch.zeros(1, 4, dtype=torch.long)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return first
