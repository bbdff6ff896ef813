import pytest
import torch

from st3.training.lr_schedules import ConstantLR, CosineLR, MultiStepLR, OneCycleLR

PEAK = 0.3


def rates_of_torch(make_scheduler, steps: int, lr: float = PEAK) -> list[float]:
    """The rate that each of `steps` optimizer steps uses under one of PyTorch's own schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(schedule, steps: int) -> list[float]:
    return [PEAK * schedule.value(step) for step in range(steps)]


def test_constant_is_the_peak_throughout():
    assert rates(ConstantLR(), 5) == [PEAK] * 5


@pytest.mark.parametrize("milestones", [(), (4,), (4, 7), (0, 9), (3, 3)])
def test_multistep_is_pytorchs(milestones):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [m for m in milestones if m], gamma=0.1), 12
    )
    shift = 0.1 if 0 in milestones else 1.0  # PyTorch never sees a milestone at step 0
    ours = rates(MultiStepLR(milestones=milestones, gamma=0.1), 12)
    assert ours == pytest.approx([shift * rate for rate in reference])


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_is_pytorchs(final):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=final * PEAK), 20
    )
    assert rates(CosineLR(total=20, final=final), 20) == pytest.approx(reference)


@pytest.mark.parametrize(("total", "warmup"), [(20, 6), (50, 15), (10, 2)])
def test_one_cycle_is_pytorchs(total, warmup):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, PEAK, total_steps=total, pct_start=warmup / total, div_factor=25, final_div_factor=400,
            cycle_momentum=False,
        ),
        total - 1,  # PyTorch's scheduler must not be stepped past its end
    )  # fmt: skip
    ours = rates(OneCycleLR(total=total, warmup=warmup, initial=1 / 25, final=1 / 25 / 400), total)
    assert ours[:-1] == pytest.approx(reference)
    assert ours[-1] == pytest.approx(PEAK / 25 / 400)
    assert max(ours) == ours[warmup - 1] == pytest.approx(PEAK)


def test_one_cycle_without_warm_up_starts_at_the_peak():
    assert OneCycleLR(total=10, warmup=0, initial=0.04, final=0.1).value(0) == 1
    assert OneCycleLR(total=1, warmup=0, initial=0.04, final=0.1).value(0) == 1


@pytest.mark.parametrize(
    "schedule",
    [ConstantLR(warmup=4), MultiStepLR(milestones=(8,), gamma=0.1, warmup=4), CosineLR(total=12, warmup=4)],
)
def test_linear_warm_up_reaches_the_peak_with_its_last_step(schedule):
    assert [schedule.value(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule.value(4) == pytest.approx(1.0)


def test_after_the_warm_up_the_cosine_spans_the_rest():
    warmed, plain = CosineLR(total=25, warmup=5, final=0.1), CosineLR(total=20, final=0.1)
    assert [warmed.value(5 + step) for step in range(20)] == pytest.approx([plain.value(step) for step in range(20)])


def test_milestones_count_from_the_start_of_training_also_after_a_warm_up():
    schedule = MultiStepLR(milestones=(6, 8), gamma=0.5, warmup=3)
    assert [schedule.value(step) for step in range(3, 10)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
