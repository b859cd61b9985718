"""Models by short name, hub id or folder, always with a pinned identity."""

from dataclasses import dataclass
from pathlib import Path

from ..foundation.errors import UserError, did_you_mean
from .folder_checks import check_files, check_folder, check_no_adapter
from .headers import INDEX, SINGLE, weight_files
from .identity import model_sha256
from .preset_list import PRESETS
from .quantised.scheme import PACKED_FILE


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded again as the very same weights.

    Attributes:
        name: preset name, hub id, or the folder's own name with the first digits of its hash; shown in tables.
        location: folder or hub id.
        revision: hub commit, or empty for a folder.
        sha256: identity: `identity.model_sha256` of the folder, or hub id and commit.
        recipe: name of the preset's recipe, or empty.
        note: what else the given name could have meant, and how to say that; else empty.
    """

    name: str
    location: str
    revision: str
    sha256: str
    recipe: str = ""
    note: str = ""

    @property
    def short_name(self) -> str:
        """The name without a hub's owner, for files and folders; commits but the presets' own are part of it."""
        last = Path(self.name).name
        preset = PRESETS.get(self.name)
        return last if self.is_local or (preset and preset.revision == self.revision) else f"{last}-{self.revision[:8]}"

    @property
    def is_local(self) -> bool:
        """Whether the weights lie in a folder of this machine."""
        return not self.revision


def resolve_model(name: str, revision: str | None = None) -> ModelSource:
    """Find the model behind a preset name, a folder or a hub id.

    Args:
        name: preset name, folder with ``config.json``, or hub id ``owner/name``.
        revision: 40-digit commit of a hub model; needed for hub ids, since a branch name is not an identity.

    Raises:
        UserError: nothing of that name, a folder without a model, or a hub id without a commit.
    """
    preset = PRESETS.get(name)
    location = preset.source if preset else name
    pinned = revision or (preset.revision if preset else "")
    folder = Path(location).expanduser()
    if name and folder.is_file():
        raise _no_folder(folder)
    if name and folder.is_dir():
        check_files(folder)
        check_no_adapter(folder)
        if not ((folder / "config.json").is_file() and weight_files(folder)) and (
            gguf := sorted(folder.glob("*.gguf"))
        ):
            raise _no_folder(gguf[0])
        if not (folder / "config.json").is_file():
            if (folder / PACKED_FILE).is_file():
                raise _no_folder(folder / PACKED_FILE)
            raise UserError(f"the folder {folder} holds no model (config.json is missing); name a transformers folder")
        if not weight_files(folder):
            raise UserError(
                f"the folder {folder} holds no weights ({SINGLE}, or {INDEX} and its files); save the model as "
                "safetensors first"
            )
        check_folder(folder)
        sha256 = model_sha256(folder)
        label = name if preset else folder_name(folder, sha256)
        note = other_meaning(name, revision)
        return ModelSource(label, str(folder.resolve()), "", sha256, preset.recipe if preset else "", note)
    if location.count("/") != 1 or location.startswith((".", "/", "~")):
        raise UserError(
            f"unknown model '{name}'{did_you_mean(name, PRESETS) or ';'} allowed: a preset ({', '.join(PRESETS)}), a "
            "folder with config.json and safetensors, or a hub id such as meta-llama/Llama-2-7b-hf"
        )
    if len(pinned) != 40 or not all(c in "0123456789abcdef" for c in pinned):
        raise UserError(
            f"the hub model '{name}' needs a pinned revision, or tables could not say which weights they show; "
            "add --revision with the repository's 40-digit commit"
        )
    recipe, note = preset.recipe if preset else "", other_meaning(name, revision)
    return ModelSource(name, location, pinned, f"{location}@{pinned}", recipe, note)


def _no_folder(file: Path) -> UserError:
    """Return the error of a model that is one file."""
    if file.suffix.lower() == ".gguf":
        return UserError(
            f"{file} is in llama.cpp's format GGUF, which lowrank-bench does not read; name the model that it was made "
            "from: a folder with config.json and safetensors, or a hub id"
        )
    if file.name == PACKED_FILE:
        return UserError(
            f"{file} holds packed weights, which are counted and which neither transformers nor vLLM serves; name "
            f"{file.parent / 'model'}, the same weights dequantised"
        )
    return UserError(f"the model {file} is a file; name its folder, which holds config.json and safetensors")


def folder_name(folder: Path, sha256: str) -> str:
    """Return the name of a model in a folder: the folder's own with the first digits of the model's identity.

    Results travel, paths of this machine should not; but many folders are called ``checkpoint`` or ``model``.
    """
    return f"{folder.resolve().name}-{sha256[:8]}"


def other_meaning(name: str, revision: str | None = None) -> str:
    """Say what `resolve_model` takes where a name has two meanings, or where a revision has no effect; else ''."""
    if not (Path(name) / "config.json").is_file():
        return ""
    if name in PRESETS:
        return f"'{name}' is the preset; the folder of that name is ./{name}"
    if revision:
        return f"'{name}' is a folder here, so --revision has no effect; the hub's model is reached from another folder"
    return ""
