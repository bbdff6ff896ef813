"""When and with what a run was made: date, versions, device, state of the git project."""

import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision

from st3.training.machine import Machine


def environment(machine: Machine, version: str) -> dict:
    """Date, versions, devices and the state of the git project in the current folder, if it is one."""
    on_cuda = machine.device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "st3": version,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(machine.device) if on_cuda else processor(),
        "precision": machine.precision,
        "processes": machine.processes.world_size,
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if on_cuda else None,
        "git": _git_state(),
    }


def processor() -> str:
    """The CPU by its name, where the system tells it."""
    listing = Path("/proc/cpuinfo")  # on Linux
    found = re.search(r"model name\s*: (.+)", listing.read_text(encoding="utf-8")) if listing.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _git_state() -> dict | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None
