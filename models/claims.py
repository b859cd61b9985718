"""Which stored tensors a model uses, by their names alone, so that none vanishes silently while loading.

transformers drops a tensor that no module has and only warns; the compressed checkpoint would be of a smaller model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..foundation.errors import UserError

if TYPE_CHECKING:
    from .layout import Layout

_SHOWN = 3

_OLD_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias|(attn|attention)\.bias)$")
"""Buffers that earlier releases of transformers saved and that are computed now."""

_MULTI_TOKEN = re.compile(r"^(model\.)?mtp[._]")
"""Layers for multi-token prediction, which no causal language model of transformers has (DeepSeek-V3, Qwen3-Next)."""


@dataclass(frozen=True)
class Claims:
    """What becomes of the stored tensors of a checkpoint.

    Attributes:
        names: the model's name by stored name.
        converted: stored names whose tensors are merged or cut while loading.
        left_out: stored names that the architecture ignores by design.
    """

    names: dict[str, str]
    converted: frozenset[str]
    left_out: tuple[str, ...]

    @property
    def note(self) -> str:
        """One sentence that says what is left out; empty where it is nothing but buffers of old checkpoints."""
        return _note(self.left_out)


def claim(model: Any, stored: Iterable[str], source_name: str, layout: Layout | None = None) -> Claims:
    """Match stored tensors with the model's, by transformers' own rules for renaming.

    Args:
        model: a dense transformers model, possibly on the meta device.
        stored: names of tensors in the files.
        source_name: folder or hub id, for the error.
        layout: what is factorised, or None.

    Raises:
        UserError: tensors that no module claims; names the first and says how many.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    model_names = dict.fromkeys([*model.state_dict(), *(_factor_names(layout) if layout else ())], True)
    names: dict[str, str] = {}
    converted, others = set(), []
    for key in stored:
        name, source = rename_source_key(key, renamings, converters, model.base_model_prefix, model_names)
        # A rule may rename what already has the model's name; then the stored name is the right one.
        if name not in model_names and key in model_names:
            name, source = key, None
        if name not in model_names:
            others.append(key)
            continue
        names[key] = name
        if source is not None:
            converted.add(key)
    return Claims(names, frozenset(converted), check_unclaimed(model, others, source_name))


def check_unclaimed(model: Any, unclaimed: Collection[str], source_name: str) -> tuple[str, ...]:
    """Check tensors that no module claims; returns those that the architecture ignores by design.

    Those are what the model's class lists in ``_keys_to_ignore_on_load_unexpected``, buffers that earlier releases of
    transformers saved, and layers for multi-token prediction (``mtp.*``).

    Raises:
        UserError: any other; names the first and says how many.
    """
    by_class = [re.compile(text) for text in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    known = [*by_class, _OLD_BUFFERS, _MULTI_TOKEN]
    refused = sorted(name for name in unclaimed if not any(pattern.search(name) for pattern in known))
    if refused:
        raise UserError(
            f"no module of the {type(model).__name__} that config.json of '{source_name}' describes uses "
            f"{_listed(refused)}; "
            "correct config.json (its number of layers, for example), or save the model again without them"
        )
    return tuple(sorted(unclaimed))


def left_out_note(model: Any, unclaimed: Collection[str], source_name: str) -> str:
    """Return the sentence of `Claims.note` for tensors that a loader reports as unexpected; raises as it does."""
    return _note(check_unclaimed(model, unclaimed, source_name))


def _note(left_out: Collection[str]) -> str:
    noted = [name for name in left_out if not _OLD_BUFFERS.search(name)]
    if not noted:
        return ""
    return f"the architecture ignores {_listed(noted)}: left out of the model, its size and the ratio"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{len(names):,} stored tensor{'s' if len(names) > 1 else ''}, {', '.join(names[:_SHOWN])}{more}"


def _factor_names(layout: Layout) -> list[str]:
    factors = [f"{name}.lr_b" for name in layout.ranks]
    factors += [f"{name}.lr_a" for name in layout.ranks if name not in layout.shared]
    return [*factors, *(f"{name}.lr_bias" for name in layout.added_bias), *([layout.guard] if layout.guard else [])]
