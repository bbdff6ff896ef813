"""Learning rates against PyTorch's own schedulers, and what their settings make of durations."""

import pytest
import torch

from st3.durations import Length
from st3.errors import UserError
from st3.optim import LR_SCHEDULES
from st3.optim.lr_schedules import ConstantSettings, CosineSettings, MultiStepSettings, OneCycleSettings

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


def rates(settings, steps: int) -> list[float]:
    """Of each step of a training of so many."""
    schedule = settings.over(Length(steps))
    return [PEAK * schedule.value(step) for step in range(steps)]


def test_constant_is_the_peak_throughout():
    assert rates(ConstantSettings(), 5) == [PEAK] * 5


@pytest.mark.parametrize("milestones", [(), (4,), (4, 7), (0, 9), (3, 3)])
def test_multistep_is_pytorchs(milestones):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [m for m in milestones if m], gamma=0.1), 12
    )
    shift = 0.1 if 0 in milestones else 1.0  # PyTorch never sees a milestone at step 0
    ours = rates(MultiStepSettings(milestones=milestones), 12)
    assert ours == pytest.approx([shift * rate for rate in reference])


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_is_pytorchs(final):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=final * PEAK), 20
    )
    assert rates(CosineSettings(warmup=0, final=final), 20) == pytest.approx(reference)


def test_cosine_that_ends_before_the_training_is_the_shorter_one_and_then_stays():
    shorter = rates(CosineSettings(warmup=3, final=0.01), 15)
    assert rates(CosineSettings(warmup=3, final=0.01, end="75%"), 20) == shorter + [0.01 * PEAK] * 5
    for end in (2, 3):
        with pytest.raises(UserError, match=rf"lr_schedule.end={end}st must come after lr_schedule.warmup=3st"):
            CosineSettings(warmup=3, end=end).over(Length(20))


@pytest.mark.parametrize(("total", "warmup"), [(20, 6), (50, 15), (10, 2)])
def test_one_cycle_is_pytorchs(total, warmup):
    reference = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, PEAK, total_steps=total, pct_start=warmup / total, div_factor=25, final_div_factor=400,
            cycle_momentum=False,
        ),
        total - 1,  # PyTorch's scheduler must not be stepped past its end
    )  # fmt: skip
    ours = rates(OneCycleSettings(warmup=warmup, initial=1 / 25, final=1 / 25 / 400), total)
    assert ours[:-1] == pytest.approx(reference)
    assert ours[-1] == pytest.approx(PEAK / 25 / 400)
    assert max(ours) == ours[warmup - 1] == pytest.approx(PEAK)


def test_one_cycle_without_warm_up_starts_at_the_peak():
    assert rates(OneCycleSettings(warmup=0), 10)[0] == rates(OneCycleSettings(warmup=0), 1)[0] == PEAK


@pytest.mark.parametrize(
    "settings", [ConstantSettings(warmup=4), MultiStepSettings(milestones=[8], warmup=4), CosineSettings(warmup=4)]
)
def test_linear_warm_up_reaches_the_peak_with_its_last_step(settings):
    assert rates(settings, 12)[:5] == pytest.approx([PEAK * part for part in (0.25, 0.5, 0.75, 1.0, 1.0)])


def test_after_the_warm_up_the_cosine_spans_the_rest():
    warmed, plain = CosineSettings(warmup=5, final=0.1), CosineSettings(warmup=0, final=0.1)
    assert rates(warmed, 25)[5:] == pytest.approx(rates(plain, 20))


def test_milestones_count_from_the_start_of_training_also_after_a_warm_up():
    settings = MultiStepSettings(milestones=[6, 8], gamma=0.5, warmup=3)
    assert rates(settings, 10)[3:] == [PEAK * factor for factor in (1, 1, 1, 0.5, 0.5, 0.25, 0.25)]


# From settings --------------------------------------------------------------------------------------------------------

LENGTH = Length(steps_per_epoch=10, epochs=10)


def factors(settings) -> list[float]:
    """Of each step of a training of 10 epochs of 10 steps."""
    schedule = settings.over(LENGTH)
    return [schedule.value(step) for step in range(LENGTH.steps)]


def test_milestones_and_warm_up_in_all_units():
    found = factors(MultiStepSettings(warmup="4st", milestones=["5", "75%", "90st"], gamma=0.5))
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == [1.0] * 46 + [0.5] * 25 + [0.25] * 15 + [0.125] * 10


@pytest.mark.parametrize("milestones", [["6", "5"], ["5", "11"], ["101%"]])
def test_milestones_that_fall_or_lie_outside_are_refused(milestones):
    with pytest.raises(UserError, match=r"lr_schedule\.milestones=.* must not fall and lie within the 100 steps"):
        factors(MultiStepSettings(milestones=milestones))


@pytest.mark.parametrize("kind", LR_SCHEDULES.values(), ids=LR_SCHEDULES)
def test_a_warm_up_that_fills_training_is_refused(kind):
    with pytest.raises(UserError, match=r"lr_schedule\.warmup=100% fills all 100 steps: lower it or raise epochs"):
        kind(warmup="100%").over(LENGTH)


def test_cosine_and_one_cycle_span_the_training():
    cosine = factors(CosineSettings(final=0.1, warmup="10%"))
    assert cosine[9] == cosine[10] == 1
    assert cosine[55] == pytest.approx(0.55)
    assert 0.1 < cosine[99] < 0.101
    cycle = factors(OneCycleSettings(initial=0.04, final=0.01, warmup="30%"))
    assert (cycle[0], cycle[29], cycle[99]) == pytest.approx((0.04, 1.0, 0.01))
    assert max(cycle) == cycle[29]


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (ConstantSettings, {"warmup": "soon"}, "lr_schedule.warmup=soon is no duration: write 5ep"),
        (MultiStepSettings, {"milestones": ["5ep", "late"]}, "lr_schedule.milestones=late is no duration"),
        (MultiStepSettings, {"gamma": -0.1}, "lr_schedule.gamma=-0.1 lies outside [0, 10]"),
        (CosineSettings, {"final": -1.0}, "lr_schedule.final=-1 lies outside [0, 1]"),
        (OneCycleSettings, {"initial": -1.0}, "lr_schedule.initial=-1 lies outside [0, 1]"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(kind, settings, says):
    with pytest.raises(UserError) as caught:
        kind(**settings)
    assert says in str(caught.value)
