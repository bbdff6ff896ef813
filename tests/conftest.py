import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # the Triton kernels run in its interpreter then, which is chosen on import
    os.environ["TRITON_INTERPRET"] = "1"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
sys.path.insert(0, str(Path(__file__).parent))  # `from helpers import …` in every folder below
pytest.register_assert_rewrite("helpers", "contract", "sparsify.contract")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_picture(monkeypatch) -> None:
    """Runs draw a dot."""
    from command_cases import dot

    monkeypatch.setattr("st3.run.draw_run", dot)


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager]:
    """As long as it is entered, a file takes so many bytes: Python reports the limit as it does a full disk."""

    @contextmanager
    def limited(largest: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)

    return limited


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors here are tiny: threads only wait for each other."""
    torch.set_num_threads(1)
