import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from st3.errors import DamagedError
from st3.training.checkpoints import load_checkpoint, save_checkpoint, save_network

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/proc/self/mem")])
def test_what_is_no_file_or_cannot_be_read_is_no_checkpoint(make, tmp_path):
    make(tmp_path / "last.pt")
    with pytest.raises(DamagedError, match=r"cannot read .*last\.pt"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_checkpoint_that_cannot_be_written_keeps_the_one_before(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"epoch": 2, "function": lambda: None})
    assert load_checkpoint(path) == {"epoch": 1}


def test_tensors_and_plain_data_come_back(tmp_path):
    state = {"a": torch.randn(3, 2, dtype=torch.float64), "n": 3, "x": 0.1, "s": "é", "d": {}, "l": [1, None, True]}
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("a"), state.pop("a"))
    assert loaded == state


class Marker:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_object_is_refused_and_not_run(tmp_path):
    torch.save({"model": Marker(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(DamagedError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 1, 4, 100, 0.3, 0.9, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": nn.Linear(20, 20).state_dict()})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedError, match=r"last\.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "last.pt").write_text("not a checkpoint, " * 50)
    with pytest.raises(DamagedError, match=r"last\.pt"):
        load_checkpoint(tmp_path / "last.pt")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.point, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.norm(self.point(self.conv(x))).mean((2, 3))))


def test_a_network_in_channels_last_with_tied_weights_loads_into_a_plain_one(tmp_path):
    torch.manual_seed(0)
    net = Net().to(memory_format=torch.channels_last)
    net(torch.randn(2, 3, 6, 6))  # moves the running statistics
    path = tmp_path / "model.safetensors"
    save_network(path, net.state_dict(), {"model": "net", "st3": "0"})
    tensors = load_file(path)
    assert tensors.keys() == net.state_dict().keys()
    assert all(value.is_contiguous() for value in tensors.values())
    assert {value.dtype for name, value in tensors.items() if "batches" not in name} == {torch.float32}
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "net", "st3": "0"}

    torch.manual_seed(1)
    plain = Net()
    plain.load_state_dict(tensors)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(plain.eval()(x), net.eval()(x))
