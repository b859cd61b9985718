"""A model whose weights stay on disk: a skeleton on the meta device and a reader that gives one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..foundation.errors import UserError
from .claims import claim
from .configs import load_config, reason
from .generation_defaults import read_generation_defaults
from .headers import INDEX, SINGLE, Header, read_headers
from .hub import fetch_model
from .loading import load_skeleton, verify_folder
from .notes import add_note

_ATTRIBUTE = "lowrank_weights"


class NotStreamable(Exception):
    """The checkpoint or the architecture cannot be read tensor by tensor; says why, in words that follow "because"."""


class DiskWeights:
    """The tensors of a checkpoint by the model's own names, read when asked for.

    Args:
        locations: file and name in that file, by the model's name.
        tied: the name that holds a tied tensor, by the name that has none of its own.
        device: where `read` puts tensors.
        scratch: folder for what does not fit into memory; None takes the system's temporary folder.
    """

    def __init__(
        self,
        locations: dict[str, tuple[Path, str]],
        tied: dict[str, str] | None = None,
        device: str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        self.locations, self.tied, self.device, self.scratch = locations, dict(tied or {}), device, scratch
        self.replacements: dict[str, Callable[[], Tensor]] = {}

    def stored(self, name: str, replaced: bool = True) -> Tensor:
        """Return a tensor on the CPU as it is stored, or, unless ``replaced`` is False, as `replace` made it."""
        if replaced and name in self.replacements:
            return self.replacements[name]()
        file, key = self.locations[self.tied.get(name, name)]
        # Opened again each time: an open file keeps every page that was read of it in the process's memory.
        with safe_open(file, framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(key)
            return value

    def read(self, name: str, replaced: bool = True) -> Tensor:
        """Return a floating-point tensor as float32, others as they are, on the device; see `stored`."""
        value = self.stored(name, replaced)
        return value.to(self.device, torch.float32 if value.is_floating_point() else value.dtype)

    def replace(self, name: str, make: Callable[[], Tensor]) -> None:
        """Let a tensor come from a function instead of the checkpoint."""
        self.replacements[name] = make


def weights_of(model: nn.Module) -> DiskWeights | None:
    """Return the reader of a streamed model, or None for a model that is in memory."""
    weights: DiskWeights | None = model.__dict__.get(_ATTRIBUTE)
    return weights


def weight_of(model: nn.Module, name: str) -> Tensor:
    """Return the weight of a linear layer, from memory or, for a streamed model, from disk as float32."""
    weights = weights_of(model)
    if weights is not None:
        return weights.read(f"{name}.weight")
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@contextmanager
def loaded(model: nn.Module, prefix: str) -> Iterator[None]:
    """Put the weights of the submodule ``prefix`` into a streamed model, float32, and take them out again."""
    weights, module = weights_of(model), model.get_submodule(prefix)
    assert weights is not None
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for name, part in module.named_modules(prefix=prefix):
            replaced.extend(fill(weights, name, part))
        yield
    finally:
        empty(replaced)


def fill(
    weights: DiskWeights, name: str, module: nn.Module, shared: dict[str, nn.Parameter] | None = None
) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Read the direct parameters of a module; returns the parameters that were there, for `empty`.

    Args:
        weights: the reader.
        name: of the module.
        module: its parameters on the meta device are filled.
        shared: tensors that other modules may have read already, by name; tied ones are read once.
    """
    replaced = []
    for key, parameter in module._parameters.items():
        if parameter is not None and parameter.is_meta:
            own = f"{name}.{key}" if name else key
            source, known = weights.tied.get(own, own), {} if shared is None else shared
            if source not in known:
                known[source] = nn.Parameter(weights.read(own), requires_grad=False)
            replaced.append((module, key, parameter))
            module._parameters[key] = known[source]
    return replaced


def empty(replaced: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
    """Put back what `fill` took out."""
    for module, key, parameter in replaced:
        module._parameters[key] = parameter


def open_streamed(location: str | Path, revision: str = "", device: str = "cpu", scratch: Path | None = None) -> Any:
    """Open a dense causal language model without loading its weights, ready for evaluation.

    Parameters are on the meta device; buffers that a checkpoint does not hold (rotary frequencies) are real.

    Args:
        location: folder or hub id.
        revision: hub commit, or empty for a folder.
        device: where weights go when they are read.
        scratch: see `DiskWeights`.

    Raises:
        NotStreamable: tensors must be merged or cut while loading, or do not fit the model; load it whole.
        UserError: a folder that is damaged.
    """
    headers = _stored_tensors(location, revision, download=True)
    model = _with_buffers(location, revision)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    weights = DiskWeights(_placed(model, headers, tied, str(location)), tied, device, scratch)
    for name, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                own = f"{name}.{key}" if name else key
                module._buffers[key] = (weights.read(own) if own in weights.locations else buffer).to(device)
    for name, source in tied.items():  # on the meta device they are declared, but not yet one tensor
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._parameters[key] = model.get_parameter(source)
    model.__dict__[_ATTRIBUTE] = weights
    return model.eval()


def why_not_streamed(location: str | Path, revision: str = "") -> str:
    """Return why a model cannot be opened by `open_streamed`, or an empty text; downloads nothing.

    Of a hub model that was never downloaded only the configuration is judged.
    """
    try:
        headers = _stored_tensors(location, revision, download=False)
        skeleton = load_skeleton(location, revision)
        if headers:
            _placed(skeleton, headers, dict(getattr(skeleton, "all_tied_weights_keys", None) or {}), str(location))
    except NotStreamable as reason:
        return str(reason)
    return ""


def _stored_tensors(location: str | Path, revision: str, download: bool) -> dict[str, Header]:
    """Return where every tensor of a checkpoint lies, by its name on disk; empty for a hub model not downloaded yet."""
    if Path(location).is_dir():
        verify_folder(Path(location))
    if getattr(load_config(location, revision), "quantization_config", None):
        raise NotStreamable("it is quantised or factorised already")
    return stored_tensors(location, revision, download)


def stored_tensors(location: str | Path, revision: str, download: bool) -> dict[str, Header]:
    """Return every tensor of a checkpoint, dense or factorised, by its name on disk.

    Args:
        location: folder or hub id.
        revision: hub commit, or empty for a folder.
        download: fetch what a hub model's cache lacks; without it such a model gives nothing.

    Raises:
        NotStreamable: the weights are not in the safetensors files that transformers reads.
    """
    from transformers.utils.hub import cached_file

    if download:
        fetch_model(location, revision, weights=True)

    def find(name: str) -> Path | None:
        path = cached_file(
            str(location),
            name,
            revision=revision or None,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(path) if path else None

    index = find(INDEX)
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index else [SINGLE]
    files = [find(name) for name in names]
    if not download and None in files and not Path(location).is_dir():
        return {}
    absent = next((name for name, file in zip(names, files, strict=True) if file is None), None)
    if absent:
        raise NotStreamable(f"it has no {absent}")
    return read_headers(file for file in files if file)


def _placed(
    model: nn.Module, headers: dict[str, Header], tied: dict[str, str], source_name: str
) -> dict[str, tuple[Path, str]]:
    """Return file and stored name of each tensor, renamed as transformers does on load."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    claims = claim(model, headers, source_name)
    if claims.converted:
        raise NotStreamable("its tensors are merged or cut while loading")
    locations: dict[str, tuple[Path, str]] = {}
    for key, name in claims.names.items():
        if name in locations:
            raise NotStreamable(f"it stores {name} twice")
        if headers[key].shape != shapes[name]:
            raise NotStreamable(f"its tensor {name} has another shape than its configuration says")
        locations[name] = (headers[key].file, key)
    add_note(model, claims.note)
    # Only the source of a tie is read, so that a second copy with other values would be ignored.
    double = sorted(name for name, source in tied.items() if name in locations and name != source)
    if double:
        raise NotStreamable(f"it stores the tied tensor {double[0]} a second time")
    absent = sorted(name for name in shapes if tied.get(name, name) not in locations)
    if absent:
        raise NotStreamable(f"it has no tensor {absent[0]}")
    return locations


def _with_buffers(location: str | Path, revision: str) -> Any:
    """Build the model with its parameters on the meta device and its buffers computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = load_config(location, revision)
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # as in `load_skeleton`
        raise UserError(
            f"the configuration of '{location}' describes no causal language model that transformers can build "
            f"({reason(error)}); name another model"
        ) from error
    if model.can_generate():
        model.generation_config, note = read_generation_defaults(location, revision)
        add_note(model, note)
    return model
