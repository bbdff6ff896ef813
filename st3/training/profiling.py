"""What the steps spend their time on, for https://ui.perfetto.dev, and how much memory they take."""

import re
import resource
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from st3.errors import UserError


class StepProfiler:
    """Traces a few steps, after the first ones have warmed up.

    `remaining`: the steps that will come. Raises `UserError` when they are fewer than three.
    """

    SKIPPED, TRACED = 20, 5

    def __init__(self, device: torch.device, remaining: int):
        if remaining < 3:
            raise UserError(f"profile=true needs 3 steps or more, and {remaining} are left: set profile=false")
        self._activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._skipped = min(self.SKIPPED, remaining // 2)
        self._traced = min(self.TRACED, remaining - self._skipped - 1)

    def start(self, path: Path) -> None:
        """Watch from now on; the trace goes to `path`, a .json.gz."""
        self._profile = profile(
            activities=self._activities,
            schedule=schedule(wait=self._skipped, warmup=1, active=self._traced, repeat=1),
            on_trace_ready=lambda trace: trace.export_chrome_trace(str(path)),
        )
        self._profile.start()

    def step(self) -> None:
        """To be called after each optimizer step."""
        self._profile.step()

    def close(self) -> None:
        """Write what there is."""
        self._profile.stop()


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew; has no effect on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU since `reset_peak_memory`; on a CPU the most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # On Linux the other figure starts with that of the process which started this one.
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
