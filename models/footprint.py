"""How much memory a model needs, estimated from its configuration before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from ..foundation.memory import free_memory
from .configs import load_config
from .loading import DTYPES, own_dtype, weights_size
from .matrices import model_size

SMALL_PARAMETERS = 50_000_000
"""Models below this size do not fill a processor's cores, and starting a process takes longer than loading them."""


def context_length(config: Any) -> int:
    """Return the longest sequence of a model in tokens; 2048 where its configuration does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)


def head_size(config: Any) -> int | None:
    """Return the width of an attention head, or None where the configuration does not say."""
    text = config.get_text_config()
    heads, width = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    return getattr(text, "head_dim", None) or (width // heads if heads and width else None)


def token_bytes(config: Any, itemsize: int) -> int:
    """Return the bytes of keys and values of one token; 0 where the configuration does not say.

    Layers with a sliding window need less: this is what must fit at most.
    """
    text = config.get_text_config()
    layers, width = getattr(text, "num_hidden_layers", None), head_size(config)
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    return 2 * layers * heads * width * itemsize if layers and heads and width else 0


def loading_bytes(skeleton: Any, dtype: str) -> int:
    """Return what a model takes while it is loaded: weights, and the pages of files that are in another dtype.

    Tensors of the same dtype are the pages themselves.

    Args:
        skeleton: on the meta device.
        dtype: name of what it is loaded as.
    """
    own, parameters = own_dtype(skeleton.config), model_size(skeleton).parameters
    return parameters * (DTYPES[dtype].itemsize + (0 if own == dtype else DTYPES[own].itemsize))


@dataclass(frozen=True)
class Footprint:
    """What a model needs.

    Attributes:
        weights: bytes of its weights.
        token: bytes of one token's keys and values.
        context: its longest sequence in tokens.
        dtype: what it is loaded as.
        longest: most tokens of a sequence that will be asked for, None for the context.
    """

    weights: int
    token: int
    context: int
    dtype: str
    longest: int | None = None

    @property
    def sequence(self) -> int:
        """The tokens of the longest sequence that must fit into memory."""
        return self.context if self.longest is None else min(self.longest, self.context)


def footprint(checkpoint: str | Path, revision: str = "", dtype: str = "auto", longest: int | None = None) -> Footprint:
    """Measure a model from its configuration and the headers of its files.

    Args:
        checkpoint: folder or hub id.
        revision: hub commit.
        dtype: what it will be loaded as; ``auto`` is the checkpoint's own.
        longest: see `Footprint`.

    Raises:
        UserError: a folder that is not whole, or a configuration that cannot be read.
    """
    config = load_config(checkpoint, revision)
    chosen = dtype if dtype != "auto" else own_dtype(config)
    itemsize = DTYPES[chosen].itemsize
    weights = weights_size(checkpoint, revision).parameters * itemsize
    return Footprint(weights, token_bytes(config, itemsize), context_length(config), chosen, longest)


def check_model(needs: Footprint, checkpoint: str | Path, device: str) -> None:
    """Raise a `UserError` if a model's weights and the longest sequence asked for do not fit into memory."""
    cache = needs.token * needs.sequence
    needed, free = needs.weights + cache, free_memory(device)
    if needed > free:
        raise UserError(
            f"the model '{checkpoint}' needs {needed / 2**30:.1f} GiB on {device} as {needs.dtype} (weights "
            f"{needs.weights / 2**30:.1f}, keys and values of one sequence of {needs.sequence} tokens "
            f"{cache / 2**30:.1f}), but {free / 2**30:.1f} GiB are free; use fewer --workers, "
            "--dtype bfloat16, or a machine with more memory"
        )


def check_batch(config: Any, itemsize: int, device: str, batch_size: int, length: int) -> None:
    """Raise a `UserError` if the keys and values of a batch of sequences of that length do not fit into memory."""
    needed, free = token_bytes(config, itemsize) * batch_size * length, free_memory(device)
    if needed > free:
        raise UserError(
            f"a batch of {batch_size} sequences of up to {length} tokens needs {needed / 2**30:.1f} GiB for keys and "
            f"values, but {free / 2**30:.1f} GiB are free on {device}; use a smaller batch (--eval-batch-size in bench "
            "run, --batch-size in bench eval) or lower --max-new-tokens"
        )
