"""What of the hub this machine can reach, and what it has of it already; nothing is downloaded."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

HUB_SECONDS = 10
"""So long an answer of the hub is waited for."""


def is_offline() -> bool:
    """Whether the environment says that the hub is not to be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE") == "1"


def hub_answers() -> bool:
    """Whether the hub answers at all; one request, where the hub's client would try each file for a minute."""
    from huggingface_hub import constants

    if is_offline():
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def is_cached(location: str, revision: str, *files: str) -> bool:
    """Whether one of these files of a hub model is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(location, file, revision=revision), str) for file in files)
