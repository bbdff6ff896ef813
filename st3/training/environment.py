"""With what a run was made: versions, device, state of the git project."""

import platform
import subprocess

import torch
import torchvision

from st3.training.machine import Machine


def environment(machine: Machine, version: str) -> dict:
    """Versions, devices and the state of the git project in the current folder, if it is one."""
    on_cuda = machine.device.type == "cuda"
    return {
        "st3": version,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(machine.device) if on_cuda else platform.machine(),
        "processes": machine.processes.world_size,
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if on_cuda else None,
        "git": _git_state(),
    }


def _git_state() -> dict | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None
