"""Every method as a contender of the table of steps."""

from argparse import Namespace

import pytest
import torch
from benchmarks.plain import PlainContender
from benchmarks.step import StepContender, step_config
from benchmarks.training import chosen_methods

from st3 import UserError
from st3.sparsify import METHODS
from st3.training.machine import Machine

RESNET20 = 270_896
MACHINE = Machine(torch.device("cpu"))
ARGS = Namespace(model="resnet20", batch=4, image_size=8, classes=10, steps=1, warm_up=False)


@pytest.fixture(scope="module")
def config():
    return step_config(ARGS)


def contender(config, method: str) -> StepContender:
    batch = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(4)
    one = StepContender(config, method, "eager", batch, MACHINE, ARGS)
    one.build()
    one.warm_up()
    return one


def masks_of(one: StepContender) -> list[torch.Tensor]:
    return one.sparsifier.state_dict()["method"]["masks"]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return not all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", [*METHODS, "naive"])
def test_every_method_is_timed_and_checked(name, config):
    one = contender(config, name)
    assert one.interval == {"rigl": 100, "set": 100, "granet": 1000}.get(name, 0)
    assert one.all_change == (name == "probmask")
    if one.interval:
        at_first = masks_of(one)
        for _ in range(3):
            one.work()
            assert not changed(at_first, masks_of(one))
        one.update()
        updated = masks_of(one)
        assert changed(at_first, updated)
        one.work()
        assert not changed(updated, masks_of(one))
        one.update()
    found = one.check()
    assert found["weights"] == RESNET20
    if name == "dense":
        assert found["zeros"] == 0
    elif name == "str":
        assert "zeros_expected" not in found
        assert found["zeros"] == pytest.approx(0.9 * RESNET20, rel=0.03)
    else:
        assert found["zeros_expected"] == pytest.approx(0.9 * RESNET20, abs=1)
        dead = 1000 if name == "set" else 1  # so small, some of what it grows at random never gets a gradient
        assert -1 <= found["zeros"] - 0.9 * RESNET20 <= dead
    if name in ("dense", "naive"):
        return
    # Other zeros than the method leaves are not reported.
    one.final_step = lambda batch: torch.zeros(())
    weight = max((w.data for w in one.state.model.parameters()), key=torch.numel)
    for chosen, value in ((weight == 0, 1e-9), (weight != 0, 0.0)):
        right, some = weight.clone(), tuple(chosen.nonzero()[:3].T)
        weight[some] = value
        with pytest.raises(UserError, match="nothing reported"):
            one.check()
        weight.copy_(right)
        one.check()


def test_dense_has_nothing_attached(config):
    one = contender(config, "dense")
    assert not one.state.optimizer._optimizer_step_pre_hooks
    assert not one.state.optimizer._optimizer_step_post_hooks


def test_what_cannot_be_captured_says_why(config):
    for name, reason in (("naive", "its threshold waits for the device"), ("st3", "CUDA graphs need a CUDA device")):
        one = StepContender(config, name, "captured", (torch.zeros(0), torch.zeros(0)), MACHINE, ARGS)
        with pytest.raises(UserError, match=reason):
            one.build()


@pytest.mark.slow
def test_the_warm_up_of_another_one_alone(config, monkeypatch):
    one = contender(config, "st3")
    alone = StepContender(config, "st3", "eager", one.batch, MACHINE, Namespace(**{**vars(ARGS), "warm_up": True}))
    alone.build()
    measured = alone.result["warm_up_seconds"]
    assert alone.sparsifier.step == 0
    alone.warm_up()
    assert alone.result["warm_up_seconds"] == measured > 0


def test_methods_by_name():
    assert chosen_methods("rigl,dense,naive", "naive") == ["dense", "rigl", "naive"]
    everything = chosen_methods("all", "naive")
    assert everything[0] == "dense"
    assert sorted(everything) == sorted([*METHODS, "naive"])
    with pytest.raises(UserError, match="--methods=rigle does not exist: did you mean rigl"):
        chosen_methods("st3,rigle")


def test_the_plain_loop_trains_the_dense_network_as_the_package_does(config):
    batch = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(4)
    plain = PlainContender(config, "pytorch", "eager", batch, MACHINE, ARGS)
    plain.build()
    package = StepContender(config, "dense", "eager", batch, MACHINE, ARGS)
    package.build()
    for _ in range(3):
        plain.work()
        package.work()
    assert plain.check() == {"loss": plain.loss.item(), "zeros": 0, "weights": RESNET20}
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(package.state.model.state_dict()[name], value)
