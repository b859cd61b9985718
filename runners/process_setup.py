"""What ``--accelerate FILE`` asks for: accelerate's own configuration file, checked before anything is planned."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..foundation.errors import UserError, did_you_mean
from ..foundation.files import read_limited
from ..foundation.plain import MAX_BYTES

Strategy = Literal["ddp", "fsdp2"]

FSDP2 = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: {processes}
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
"""
"""accelerate's configuration of a training that is shared out over GPUs without a file of the user's."""

_FIX = "write one with 'accelerate config', or take an example from docs/many-gpus.md"
_TYPES: dict[str, Strategy] = {"MULTI_GPU": "ddp", "FSDP": "fsdp2"}


@dataclass(frozen=True)
class ProcessSetup:
    """How training stages are spread.

    Attributes:
        file: accelerate's configuration file; None for `FSDP2`, which the plan chose by itself.
        processes: how many train together.
        strategy: ``ddp`` keeps the whole model in each process, ``fsdp2`` a share of it.
    """

    file: Path | None
    processes: int
    strategy: Strategy


def refuse_launchers() -> None:
    """Raise a UserError in a process that a launcher started beside others to train together.

    Each of them would run the whole sweep, and its trainings would wait for one another.
    """
    if "LOCAL_RANK" in os.environ and (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"bench runs in {count} processes of torchrun, accelerate launch or the like, but it starts the processes "
            "of a training itself; start it once, and say how many train together by --accelerate FILE (examples in "
            "docs/many-gpus.md)"
        )


def read_setup(file: Path, device: str, gpus: int | None = None) -> ProcessSetup:
    """Read and check a configuration file of ``accelerate config``.

    Args:
        file: YAML.
        device: torch device of the sweep.
        gpus: how many there are; None asks torch.

    Raises:
        UserError: no such file, or one that asks for something this project does not do.
    """
    values = _load(file)
    title = f"the accelerate config {file}"
    kind = str(values.get("distributed_type", "NO"))
    if kind not in _TYPES:
        hint = did_you_mean(kind, _TYPES)
        raise UserError(f"{title} has distributed_type {kind}{hint or ';'} supported: FSDP, MULTI_GPU (also on CPUs)")
    processes = values.get("num_processes")
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 2:
        raise UserError(f"{title} has num_processes {processes}; say how many train together, 2 or more")
    if values.get("num_machines", 1) != 1:
        raise UserError(
            f"{title} has num_machines {values['num_machines']}; a stage runs on one machine, so write num_machines: 1"
        )
    if values.get("use_cpu"):
        raise UserError(f"{title} has use_cpu, with which accelerate starts MPI; leave it out and say --device cpu")
    if str(values.get("mixed_precision") or "no") != "no":
        raise UserError(
            f"{title} has mixed_precision {values['mixed_precision']}, but the recipe's precision decides; write "
            "mixed_precision: 'no'"
        )
    if _TYPES[kind] == "fsdp2":
        _check_sharding(values.get("fsdp_config") or {}, title)
    _check_device(device, processes, title, gpus)
    return ProcessSetup(file.expanduser().resolve(), processes, _TYPES[kind])


def _load(file: Path) -> dict[str, Any]:
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        values = yaml.safe_load(read_limited(file.expanduser(), MAX_BYTES))
    except OSError as error:
        raise UserError(f"the accelerate config {file} cannot be read ({error.strerror}); {_FIX}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).split("\n")[0]
        raise UserError(f"the accelerate config {file} is no valid YAML ({line}); {_FIX}") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UserError(f"{file} is no accelerate config (it has no distributed_type); {_FIX}")
    try:
        load_config_from_file(str(file.expanduser()))
    except (ValueError, TypeError, KeyError) as error:
        line = str(error).split("\n")[0]
        raise UserError(f"accelerate does not take the config {file} ({line}); {_FIX}") from error
    return values


def _check_sharding(values: dict[str, Any], title: str) -> None:
    if values.get("fsdp_version") != 2:
        raise UserError(
            f"{title} has fsdp_version {values.get('fsdp_version', 1)}; only 2 is supported, so write fsdp_version: 2"
        )
    if values.get("fsdp_activation_checkpointing"):
        raise UserError(
            f"{title} has fsdp_activation_checkpointing, but the recipe's gradient_checkpointing decides; leave it out"
        )
    if values.get("fsdp_auto_wrap_policy") != "TRANSFORMER_BASED_WRAP":
        raise UserError(
            f"{title} has fsdp_auto_wrap_policy {values.get('fsdp_auto_wrap_policy', 'NO_WRAP')}; write "
            "TRANSFORMER_BASED_WRAP, so that each decoder layer is gathered by itself"
        )


def _check_device(device: str, processes: int, title: str, gpus: int | None) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"--device {device} names one GPU; with --accelerate say --device cuda and gpu_ids in {title}")
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    if processes > gpus:
        raise UserError(
            f"{title} asks for {processes} processes, but the machine has {gpus} GPUs; lower "
            "num_processes, or say --device cpu"
        )
