"""Where a run happens: the device, the arithmetic precision, and the processes that share the work."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from st3.errors import UserError
from st3.training.distributed import SINGLE, Processes


@dataclass(frozen=True)
class Machine:
    """One process's device, how forward passes compute on it, and the processes that train together."""

    device: torch.device
    precision: str = "fp32"
    """fp32, bf16 or fp16, of forward passes; weights stay float32."""
    processes: Processes = SINGLE

    @property
    def dtype(self) -> torch.dtype:
        """Of convolutions and matrix products in forward passes."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def autocast(self) -> AbstractContextManager:
        """Context for one forward pass. To be entered anew each time: its weight cache does not see a step."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, self.dtype)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; without effect but for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def pick_machine(device: str, precision: str, processes: Processes = SINGLE) -> Machine:
    """What `device` and `precision` mean here; see `pick_device` and `pick_precision`. A GPU becomes the current one.

    Raises `UserError` for what is not there, in all processes.
    """
    chosen = processes.together(lambda: pick_device(device, processes))
    if chosen.index is not None:
        torch.cuda.set_device(chosen)  # what asks for "the current device" shall mean this one
    return Machine(chosen, pick_precision(precision, chosen), processes)


def pick_device(name: str, processes: Processes = SINGLE) -> torch.device:
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`; of several processes each has a GPU of its own.

    Raises `UserError` for what is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise UserError(f"device={name} is not known: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}, but PyTorch sees no CUDA device here: use device=cpu")
    if kind == "cuda" and processes.world_size > 1:
        if index:
            raise UserError(f"device={name} is one device for {processes.world_size} processes: use device=cuda")
        if processes.local_rank >= torch.cuda.device_count():
            raise UserError(f"this machine has {torch.cuda.device_count()} CUDA devices: torchrun --nproc-per-node=…")
        return torch.device("cuda", processes.local_rank)
    if index and kind == "cuda" and int(index) >= torch.cuda.device_count():
        raise UserError(f"device={name}, but there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes with it, else fp16 on CUDA and fp32 on the CPU.

    Raises `UserError` for fp16 on the CPU.
    """
    if name == "auto":
        if device.type == "cpu":
            return "bf16" if cpu_has_bf16() else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a CUDA device: use precision=bf16 or precision=fp32 on the CPU")
    return name


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX-512-BF16, AMX); without, it would be slower."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
