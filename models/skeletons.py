"""Models without weights, with the factors that their folders announce."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoint import put_layers
from .folder_checks import layout_of, read_object
from .loading import load_skeleton


def load_exact_skeleton(location: str, revision: str = "") -> nn.Module:
    """Build a model on the meta device as `loading.load_skeleton` does, with its factors where it is a folder."""
    skeleton = load_skeleton(location, revision)
    if Path(location).is_dir() and (layout := layout_of(read_object(Path(location) / "config.json"))):
        put_layers(skeleton, layout)
    return skeleton
