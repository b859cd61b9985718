"""``bench doctor`` names what is missing and the command that installs it; machines are folders here."""

import importlib.util
import shlex
import tomllib
from pathlib import Path

import pytest
from code_blocks import ROOT

from lowrank_bench.evals.hosting.installing import VLLM_FOR_CPUS, VLLM_FOR_GPUS
from lowrank_bench.runners import doctor
from lowrank_bench.runners.gpus import unseen_gpu


def machine(root: Path, device: bool = False, driver: bool = False, card: bool = False) -> Path:
    for folder in ("dev", "proc/driver/nvidia", "sys/bus/pci/devices/0000:01:00.0", "sys/bus/pci/devices/0000:02:00.0"):
        (root / folder).mkdir(parents=True)
    if device:
        (root / "dev/nvidia0").touch()
        (root / "dev/nvidiactl").touch()
    if driver:
        (root / "proc/driver/nvidia/version").write_text("NVRM version: 550\n")
    for number, kind in (("1", "0x030200"), ("2", "0x040300")):  # the second is the card's sound device
        (root / f"sys/bus/pci/devices/0000:0{number}:00.0/vendor").write_text("0x10de\n" if card else "0x8086\n")
        (root / f"sys/bus/pci/devices/0000:0{number}:00.0/class").write_text(f"{kind}\n")
    return root


@pytest.mark.parametrize(
    ("machine_has", "version", "built_for", "shows", "remedy"),
    [
        ({"card": True}, "2.13.0+cpu", None, "1 NVIDIA card on the bus", "sudo apt-get install nvidia-driver"),
        ({"card": True}, "2.13.0", "13.0", "no driver", "docker run --gpus all"),
        ({"card": True, "driver": True}, "2.13.0", "13.0", "no device file", "nvidia-modprobe"),
        (
            {"card": True, "driver": True, "device": True}, "2.13.0+cpu", None,
            "a build without CUDA", "pip install --force-reinstall torch==2.13.0",
        ),
        ({"driver": True, "device": True}, "2.13.0", "13.0", "cannot start CUDA 13.0", "--only-upgrade nvidia-driver"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_see_is_named_with_what_is_missing(
    tmp_path, machine_has, version, built_for, shows, remedy
):
    unseen = unseen_gpu(version, built_for, machine(tmp_path, **machine_has))
    assert shows in unseen.shows
    assert remedy in unseen.remedy


def test_a_machine_without_a_card_lacks_nothing(tmp_path):
    assert unseen_gpu("2.13.0", "13.0", machine(tmp_path)) is None
    assert unseen_gpu("2.13.0", "13.0", tmp_path / "nowhere") is None


def test_what_is_not_installed_is_named_with_its_command(monkeypatch):
    find = importlib.util.find_spec
    hidden = ("vllm", "lm_eval")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    remedies = {finding.subject: finding.remedy for finding in doctor._engines()}
    assert remedies["engine vllm"] in (f"for CPUs: {VLLM_FOR_CPUS}", f"for GPUs: {VLLM_FOR_GPUS}")
    assert "pip install 'lowrank-bench[harness]'" in remedies["lm-eval"]


def test_a_machine_that_isolates_without_bubblewrap_says_so(monkeypatch):
    monkeypatch.setattr(doctor, "isolation_level", lambda: "namespaces")
    finding = doctor._isolation()
    assert finding.fine
    assert "sudo apt-get install bubblewrap" in finding.remedy


def test_commands_name_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in (VLLM_FOR_CPUS, VLLM_FOR_GPUS):
        package = next(word for word in shlex.split(command) if word.startswith("lowrank-bench["))
        assert package.partition("[")[2].rstrip("]") in extras
