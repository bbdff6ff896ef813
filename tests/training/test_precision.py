import pytest
import torch
from torch import nn

from st3.errors import UserError
from st3.training.precision import Precision, pick_device, pick_precision

CPU = torch.device("cpu")


def test_without_cuda_auto_is_the_cpu_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    assert pick_precision("auto", CPU).name == "fp32"


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp16")])
def test_with_cuda_auto_is_what_the_device_has(monkeypatch, has_bf16, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    device = pick_device("auto")
    assert device.type == "cuda"
    assert pick_precision("auto", device).name == name


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "tpu:0", "", "meta", "cpu:"])
def test_an_unknown_device_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match="auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_cuda_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="only 2"):
        pick_device("cuda:2")


def test_fp16_needs_cuda():
    with pytest.raises(UserError, match="precision=bf16"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_run_in_the_precision_and_weights_stay_float32(name, dtype):
    precision, layer = Precision(name, CPU), nn.Linear(4, 4)
    with precision.autocast():
        output = layer(torch.ones(2, 4))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_only_fp16_scales_gradients():
    assert [Precision(name, CPU).scaler().is_enabled() for name in ("fp32", "bf16", "fp16")] == [False, False, True]
