"""What to say about a name that no YAML file defines: a file that cannot be used, the nearest name, or neither."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ...foundation.errors import UserError, did_you_mean
from ...foundation.files import digest
from ...foundation.remembered import remembered
from ..kinds.harness import harness_version

_DEFINES = re.compile(r"^\s*(?:-\s*)?(?:task|group|tag)\s*:\s*['\"]?([A-Za-z0-9_][\w.+-]*)['\"]?\s*$", re.MULTILINE)


def unknown_task(name: str, root: Path, own: Iterable[str], include_path: Path | None) -> UserError:
    """Return the error for a name that the harness has not, nor the user's folder.

    Args:
        name: of a task or group.
        root: the harness's folder of tasks.
        own: names that the user's folder defines.
        include_path: the user's folder.
    """
    return UserError(_sentence(name, root, list(own), include_path))


def unknown_member(group: str, member: str, root: Path, own: Iterable[str], include_path: Path | None) -> UserError:
    """Return the error for a group that names such a task; arguments as for `unknown_task`."""
    return UserError(f"the group '{group}' has the member '{member}', but {_sentence(member, root, own, include_path)}")


def _sentence(name: str, root: Path, own: Iterable[str], include_path: Path | None) -> str:
    version = harness_version()
    flaw = _flaw(include_path) if include_path else ""
    if flaw:
        return (
            f"there is no task or group '{name}' in lm-evaluation-harness {version} or --include-path, whose file "
            f"{flaw}; repair it, or list the harness's tasks with 'lm-eval ls tasks'"
        )
    near = did_you_mean(name, own) or did_you_mean(name, _names(root, version))
    return (
        f"lm-evaluation-harness {version} has no task or group '{name}'{near or ';'} list its tasks with 'lm-eval ls "
        "tasks', or name the folder of your own YAML files with --include-path"
    )


def _names(root: Path, version: str) -> list[str]:
    """Return the names that the harness's files define, as their text says."""

    def read() -> list[str]:
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in root.glob("**/*.yaml"))
        return sorted({match for text in texts for match in _DEFINES.findall(text)})

    return list(remembered(digest(["names of tasks of lm_eval", version]), read))


def _flaw(folder: Path) -> str:
    """Return what is wrong with the first file of a folder that the harness would pass over; empty if none is."""
    for path in sorted(folder.glob("**/*.yaml")):
        problem = _problem(path)
        if problem:
            return f"'{path}' {problem}"
    return ""


def _problem(path: Path) -> str:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(path, resolve_func=False, recursive=True)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1}: {error.problem})" if error.problem_mark else ""
        return f"is no valid YAML{line}"
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start + 1})"
    except OSError as error:
        return f"includes '{error.filename}', which cannot be read ({error.strerror})"
    except Exception as error:  # a file that is no mapping, a tag of Python's
        return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if not isinstance(config, dict):
        return "holds no 'key: value' lines"
    return "" if config.keys() & {"task", "group", "tag"} else "names no task and no group"
