"""NVIDIA GPUs that torch does not see: which of driver, device files and torch's build is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers, PCI class codes


@dataclass(frozen=True)
class Unseen:
    """A GPU that torch cannot use: what the machine shows of it, and what to type."""

    shows: str
    remedy: str


def unseen_gpu(torch_version: str, built_for: str | None, root: Path = Path("/")) -> Unseen | None:
    """Return why torch sees no GPU on a machine that has one, or None where the machine shows none.

    Args:
        torch_version: such as ``2.13.0+cpu``.
        built_for: the CUDA version of torch's build, None for a build without CUDA.
        root: where ``/dev``, ``/proc`` and ``/sys`` are.
    """
    release = torch_version.partition("+")[0]
    device_files = sorted((root / "dev").glob("nvidia[0-9]*"))
    driver = (root / "proc/driver/nvidia/version").is_file()
    if not device_files and not driver:
        count = _cards_on_the_bus(root)
        if not count:
            return None
        return Unseen(
            f"{count} NVIDIA card{'s' if count > 1 else ''} on the bus, but no driver",
            "in a container, start it with its GPUs: docker run --gpus all; else install NVIDIA's driver: "
            "sudo apt-get install nvidia-driver",
        )
    if not device_files:
        return Unseen(
            "NVIDIA's driver is loaded, but there is no device file",
            "in a container, start it with its GPUs: docker run --gpus all; else type sudo nvidia-modprobe -u -c=0",
        )
    if built_for is None:
        return Unseen(
            f"{len(device_files)} with device files, but torch {torch_version} is a build without CUDA",
            f"pip install --force-reinstall torch=={release}, without an index of CPU builds",
        )
    return Unseen(
        f"{len(device_files)} with device files, but torch {torch_version} cannot start CUDA {built_for}",
        f"nvidia-smi says which CUDA the driver serves; where it is older than {built_for}, update it: sudo apt-get "
        "install --only-upgrade nvidia-driver; where it is not, see that CUDA_VISIBLE_DEVICES is unset or names a GPU",
    )


def _cards_on_the_bus(root: Path) -> int:
    count = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASSES)
    return count
