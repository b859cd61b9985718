"""Reading a model's configuration, the one door for every command: checked, and never by the folder's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from .folder_checks import ADAPTER_FILE, adapter_beside, check_config, check_folder
from .hub import fetch_model


def load_config(location: str | Path, revision: str = "") -> Any:
    """Return the configuration of a model as transformers reads it.

    Args:
        location: folder or hub id.
        revision: hub commit, or empty for a folder.

    Raises:
        UserError: a folder that `folder_checks` refuses, a hub model that the hub does not give, that holds a peft
            adapter or whose configuration chooses code or a foreign quantisation, a model that needs code of its own,
            or a configuration that cannot be read.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    from . import checkpoint

    checkpoint.register()
    if Path(location).is_dir():
        check_folder(Path(location))
    folder = fetch_model(location, revision)
    try:
        if (folder / ADAPTER_FILE).exists():
            raise adapter_beside(str(location))
        raw, _ = PretrainedConfig.get_config_dict(str(folder))
        check_config(raw, f"config.json of '{location}'")
        if raw.get("auto_map") and raw["model_type"] not in CONFIG_MAPPING:
            raise UserError(
                f"the auto_map of config.json in '{location}' names code of its own for the model_type "
                f"'{raw['model_type']}', which is never run; name a model of an architecture that transformers has"
            )
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        if needs_eager_attention(config):
            config._attn_implementation = "eager"
        return config
    except UserError:
        raise
    except Exception as error:  # wrong types in a foreign file end in errors of many kinds
        raise UserError(
            f"the configuration of '{location}' describes no causal language model that transformers can build "
            f"({reason(error)}); name another model"
        ) from error


def needs_eager_attention(config: Any) -> bool:
    """Tell whether a model caps its attention scores (Gemma 2), which torch's fused attention does not do.

    transformers hands the cap to `sdpa_attention_forward` (``integrations/sdpa_attention.py``), which drops it without
    a word, so that the model would compute other numbers than it was trained for and than vLLM computes.
    """
    chosen = getattr(config, "_attn_implementation", None)
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None and chosen in (None, "sdpa")


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__
