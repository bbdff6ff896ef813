import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors here are tiny: threads only wait for each other."""
    torch.set_num_threads(1)
