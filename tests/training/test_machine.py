"""Which device and which precision a run gets, alone or as one of several processes."""

import re

import pytest
import torch
from torch import nn

from st3.errors import UserError
from st3.training.distributed import SINGLE, Processes
from st3.training.machine import Machine, pick_device, pick_machine, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("units", "name"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({}, "fp32"),  # another kind of processor
    ],
)
def test_without_cuda_auto_is_the_cpu_and_what_it_has_units_for(monkeypatch, units, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert pick_device("auto") == CPU
    assert pick_precision("auto", CPU) == name
    assert pick_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp16")])
def test_with_cuda_auto_is_what_the_device_has(monkeypatch, has_bf16, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    device = pick_device("auto")
    assert device.type == "cuda"
    assert pick_precision("auto", device) == name


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
    machine, layer = Machine(CPU, name), nn.Linear(4, 4)
    with machine.autocast():
        output = layer(torch.ones(2, 4))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_only_fp16_scales_gradients():
    assert [Machine(CPU, name).scaler().is_enabled() for name in ("fp32", "bf16", "fp16")] == [False, False, True]


# Several processes ----------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (Processes(rank, rank, 3) for rank in range(3))


@pytest.mark.parametrize(
    ("name", "processes", "expected"),
    [
        ("auto", SINGLE, "cuda"),
        ("cuda", SINGLE, "cuda"),
        ("cuda:1", SINGLE, "cuda:1"),
        ("auto", FIRST, "cuda:0"),
        ("cuda", SECOND, "cuda:1"),
        ("cuda", Processes(rank=5, local_rank=1, world_size=6), "cuda:1"),  # on the third machine
        ("cpu", SECOND, "cpu"),
        ("cpu", THIRD, "cpu"),
    ],
)
def test_each_process_has_a_device_of_its_own(name, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(name, processes) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "processes", "says"),
    [
        ("cuda:1", FIRST, "device=cuda:1 is one device for 3 processes: use device=cuda"),
        ("auto", THIRD, "this machine has 2 CUDA devices: torchrun --nproc-per-node="),
        ("cuda:2", SINGLE, "device=cuda:2, but there are only 2 CUDA devices"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(name, processes, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=re.escape(says)):
        pick_device(name, processes)


def test_a_process_computes_on_its_own_device_also_where_only_the_current_one_is_meant(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(Processes, "together", lambda self, action: action())  # the others are not there
    assert pick_machine("cuda", "fp32", SECOND) == Machine(torch.device("cuda:1"), "fp32", SECOND)
    assert pick_machine("cpu", "bf16", SECOND) == Machine(CPU, "bf16", SECOND)
    assert chosen == [torch.device("cuda:1")]
