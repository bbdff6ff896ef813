"""From configuration to steps and objects."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from st3.build import (
    Execution,
    Facts,
    choose_execution,
    make_data,
    make_method,
    make_model,
    make_optimizer,
    make_plan,
    make_sparsifier,
    read_facts,
)
from st3.config import (
    Config,
    DatasetConfig,
    LRScheduleConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from st3.errors import UserError
from st3.measure import layer_macs
from st3.training.distributed import SINGLE, Processes
from st3.training.precision import Precision

FACTS = Facts(classes=10, train_images=1000, val_images=0, test_images=100)


def fake_dataset(**changes) -> DatasetConfig:
    facts = {"classes": 10, "channels": 1, "image_size": 16, "mean": [0.5], "std": [0.5]}
    return DatasetConfig(name="fake", **facts | changes)


def make_config(*, start="0", end="50%", power=3.0, lr_schedule=None, **changes) -> Config:
    settings = {
        "model": ModelConfig(name="resnet20"),
        "dataset": fake_dataset(),
        "method": MethodConfig(name="st3"),
        "sparsity": 0.9,
        "schedule": ScheduleConfig(name="ramp", start=start, end=end, power=power),
        "optimizer": OptimizerConfig(name="sgd", lr=0.1, weight_decay=1e-4, momentum=0.9, nesterov=False),
        "lr_schedule": lr_schedule or LRScheduleConfig(name="constant"),
        "epochs": 10,
        "batch_size": 100,
    }
    return Config(**settings | changes)


def values(plan) -> list[float]:
    return [plan.sparsity.value(step) for step in range(plan.total_steps)]


def refused(config, facts=FACTS) -> str:
    with pytest.raises(UserError) as caught:
        make_plan(config, facts)
    return str(caught.value)


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch_size", "accumulate"),
    [(1000, 100, 1), (1000, 128, 1), (1000, 128, 4), (103, 20, 4), (64, 64, 64), (199, 100, 10), (100, 100, 1)],
)
def test_an_epoch_is_as_many_whole_batches_as_the_images_make_however_they_are_split(images, batch_size, accumulate):
    plan = make_plan(make_config(batch_size=batch_size, accumulate=accumulate), Facts(10, images, 0, 10))
    assert plan.steps_per_epoch == images // batch_size
    assert plan.total_steps == 10 * plan.steps_per_epoch


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_loader_serves_what_the_plan_asks_for(accumulate):
    dataset = DatasetConfig(
        name="fake", classes=3, channels=1, image_size=8, mean=[0.5], std=[0.5], val_images=7, train_images=110,
        test_images=5,
    )  # fmt: skip
    config = make_config(dataset=dataset, batch_size=16, accumulate=accumulate)
    facts = read_facts(config)
    assert facts == Facts(3, 103, 7, 5)
    data, plan = make_data(config, torch.device("cpu")), make_plan(config, facts)
    sizes = [len(labels) for _, labels in data.train.epoch(0)]
    assert set(sizes) == {16 // accumulate}
    assert len(sizes) // accumulate == plan.steps_per_epoch == 6
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (103, 7, 5)


def test_a_batch_larger_than_the_data_is_refused():
    message = refused(make_config(batch_size=1001))
    assert "batch_size=1001" in message
    assert "1000 training images" in message


def test_a_hold_out_of_everything_is_refused():
    dataset = fake_dataset(classes=3, val_images=50, train_images=50, test_images=5)
    with pytest.raises(UserError, match=r"dataset\.val_images=50"):
        read_facts(make_config(dataset=dataset))


def test_settings_arrive_in_the_plan():
    plan = make_plan(
        make_config(label_smoothing=0.1, clip_norm=2.0, seed=5, eval_every=3, log_every=7, accumulate=2, sparsity=0.7),
        FACTS,
    )
    assert (plan.label_smoothing, plan.clip_norm, plan.seed, plan.eval_every) == (0.1, 2.0, 5, 3)
    assert (plan.log_every, plan.accumulate, plan.lr, plan.target_sparsity) == (7, 2, 0.1, 0.7)


# The ramp -------------------------------------------------------------------------------------------------------------


def test_the_cubic_ramp_from_epoch_2_to_epoch_6_of_10():
    plan = make_plan(make_config(start="2", end="6ep", sparsity=0.8), FACTS)
    expected = [0.8 * (1 - (1 - min(max((t - 20) / 40, 0), 1)) ** 3) for t in range(100)]
    assert values(plan) == pytest.approx(expected)
    assert values(plan)[20] == 0 < values(plan)[21]
    assert values(plan)[59] < 0.8 == values(plan)[60]


@pytest.mark.parametrize("end", ["100%", "10", "100st", "99st", "99.9%"])
@pytest.mark.parametrize("start", ["0", "50%", "9.8"])
def test_a_ramp_to_the_end_of_training_reaches_the_target_with_the_last_step(start, end):
    found = values(make_plan(make_config(start=start, end=end, sparsity=0.9), FACTS))
    assert found[-1] == 0.9
    assert found[-2] < 0.9
    assert found == sorted(found)


@pytest.mark.parametrize("at", ["0", "37st", "100%"])
def test_a_ramp_of_no_length_jumps(at):
    found = values(make_plan(make_config(start=at, end=at, sparsity=0.9), FACTS))
    assert set(found) <= {0.0, 0.9}
    jump = min(37 if at == "37st" else (0 if at == "0" else 99), 99)
    assert found.index(0.9) == jump


def test_a_ramp_that_ends_before_it_starts_is_refused():
    message = refused(make_config(start="60%", end="50%"))
    assert "schedule.end=50% (step 50)" in message
    assert "schedule.start=60% (step 60)" in message


@pytest.mark.parametrize("end", ["10.1", "101st", "101%"])
def test_a_ramp_that_ends_after_training_is_refused(end):
    message = refused(make_config(end=end))
    assert f"schedule.end={end} (step 101)" in message
    assert "step 100" in message


def test_a_bad_duration_names_its_setting():
    assert "schedule.start=soon" in refused(make_config(start="soon"))
    assert "lr_schedule.warmup=soon" in refused(
        make_config(lr_schedule=LRScheduleConfig(name="constant", warmup="soon"))
    )


def test_constant_and_dense():
    constant = make_plan(make_config(schedule=ScheduleConfig(name="constant"), sparsity=0.6), FACTS)
    assert set(values(constant)) == {0.6}
    dense = make_plan(make_config(method=MethodConfig(name="dense"), sparsity=0.6), FACTS)
    assert set(values(dense)) == {0.0}
    assert (constant.target_sparsity, dense.target_sparsity) == (0.6, 0.0)


# The learning rate ----------------------------------------------------------------------------------------------------


def lr_of(config) -> list[float]:
    plan = make_plan(config, FACTS)
    return [plan.lr_schedule.value(step) for step in range(plan.total_steps)]


def test_milestones_and_warm_up_in_all_units():
    found = lr_of(
        make_config(
            lr_schedule=LRScheduleConfig(name="multistep", warmup="4st", milestones=["5", "75%", "90st"], gamma=0.5)
        )
    )
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == [1.0] * 46 + [0.5] * 25 + [0.25] * 15 + [0.125] * 10


@pytest.mark.parametrize("milestones", [["6", "5"], ["5", "11"], ["101%"]])
def test_milestones_that_fall_or_lie_outside_are_refused(milestones):
    config = make_config(lr_schedule=LRScheduleConfig(name="multistep", milestones=milestones, gamma=0.5))
    assert "lr_schedule.milestones" in refused(config)


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle", "multistep"])
def test_a_warm_up_that_fills_training_is_refused(name):
    options = {
        "cosine": {"final": 0.0},
        "one_cycle": {"final": 0.0, "initial": 0.1},
        "multistep": {"milestones": [], "gamma": 0.1},
    }.get(name, {})
    config = make_config(lr_schedule=LRScheduleConfig(name=name, warmup="100%", **options))
    assert "lr_schedule.warmup=100%" in refused(config)


def test_cosine_and_one_cycle_span_the_training():
    cosine = lr_of(make_config(lr_schedule=LRScheduleConfig(name="cosine", final=0.1, warmup="10%")))
    assert cosine[9] == cosine[10] == 1
    assert cosine[55] == pytest.approx(0.55)
    assert 0.1 < cosine[99] < 0.101
    cycle = lr_of(make_config(lr_schedule=LRScheduleConfig(name="one_cycle", initial=0.04, final=0.01, warmup="30%")))
    assert (cycle[0], cycle[29], cycle[99]) == pytest.approx((0.04, 1.0, 0.01))
    assert max(cycle) == cycle[29]


# Objects --------------------------------------------------------------------------------------------------------------


def method_of(**settings):
    config = make_config(method=MethodConfig(**settings))
    return make_method(config, make_plan(config, FACTS))


def test_durations_of_a_method_become_steps():
    method = method_of(name="rigl", every="10st", until="50%", drop=0.2)
    plan = make_plan(make_config(), FACTS)
    assert (method.every, method.until, method.drop) == (10, plan.total_steps // 2, 0.2)


def test_switches_change_the_method_and_null_keeps_it():
    published = method_of(name="st3_sigma")
    assert (published.shrink, published.rescale, published.gradient, published.layer_sigma) == (
        "soft", True, "straight_through", True,
    )  # fmt: skip
    switched = method_of(name="st3_sigma", shrink="hard", rescale=False, gradient="masked")
    assert (switched.shrink, switched.rescale, switched.gradient, switched.layer_sigma) == (
        "hard", False, "masked", True,
    )  # fmt: skip


@pytest.mark.parametrize("switch", ["shrink", "gradient"])
def test_an_unknown_switch_is_refused_by_its_name(switch):
    with pytest.raises(UserError, match=f"method.{switch}=firm"):
        method_of(name="st3", **{switch: "firm"})


def test_the_model_takes_its_sizes_from_the_data():
    dataset = fake_dataset()
    with torch.device("meta"):
        model = make_model(make_config(dataset=dataset, model=ModelConfig(name="resnet20")), FACTS)
        assert model(torch.empty(2, 1, 16, 16)).shape == (2, 10)


def test_the_optimizer_holds_every_parameter_with_its_settings():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    config = make_config(optimizer=OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.3, betas=[0.8, 0.9], eps=1e-6))
    optimizer = make_optimizer(config, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_the_sparsifier_prunes_what_is_chosen_and_counts_what_is_asked():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    macs = layer_macs(model, (1, 8, 8))
    config = make_config(
        method=MethodConfig(name="st3", include=["*"], exclude=["0"], target="flops"),
        schedule=ScheduleConfig(name="constant"),
        sparsity=0.5,
    )
    sparsifier = make_sparsifier(config, make_plan(config, FACTS), model, macs)
    assert sparsifier.pruned_layers == ["1", "3"]
    optimizer = make_optimizer(config, model)
    sparsifier.attach(optimizer)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    removed = 16 * int((model[1].weight == 0).sum()) + int((model[3].weight == 0).sum())
    assert removed == pytest.approx(0.5 * (macs["1"] + macs["3"]), abs=16)


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size", "multiple"), [(100, 1, 3, 3), (100, 4, 2, 8), (100, 25, 8, 200)]
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(batch_size, accumulate, world_size, multiple):
    config = make_config(batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(UserError) as caught:
        make_plan(config, FACTS, Processes(world_size=world_size))
    message = str(caught.value)
    assert f"batch_size={batch_size} cannot be shared by {world_size} processes in {accumulate} passes" in message
    assert f"choose a multiple of {multiple}" in message


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_the_batch_and_leave_the_plan_as_it_is(accumulate):
    config = make_config(batch_size=96, accumulate=accumulate)
    assert make_plan(config, FACTS, Processes(1, 1, 4)) == make_plan(config, FACTS)
    dataset = fake_dataset(image_size=8, train_images=200, test_images=4)
    config = make_config(batch_size=96, accumulate=accumulate, dataset=dataset)
    data = make_data(config, torch.device("cpu"), 1, 4)
    assert {len(labels) for _, labels in data.train.epoch(0)} == {96 // accumulate // 4}


# How steps are executed -----------------------------------------------------------------------------------------------

CPU, GPU, TWO = torch.device("cpu"), torch.device("cuda"), Processes(0, 0, 2)
SMALL, BIG = 40_000_000, 4_000_000_000  # of ResNet-20 on 32 pixels and of ResNet-50 on 224


def execution(precision="bf16", device=GPU, processes=SINGLE, macs=SMALL, steps_differ=False, **changes) -> Execution:
    config = make_config(**{"batch_size": 128} | changes)
    plan = make_plan(config, Facts(10, 50_000, 0, 100), processes)
    return choose_execution(config, plan, Precision(precision, device), processes, macs, steps_differ)


def test_images_are_decoded_on_a_gpu_only_where_there_is_one():
    dataset = replace(fake_dataset(channels=3, mean=[0.5] * 3, std=[0.5] * 3), name="folder", decode="gpu")
    dataset = replace(dataset, augment="random_resized_crop")
    assert execution(device=GPU, dataset=dataset).capture
    with pytest.raises(UserError, match=r"dataset\.decode=gpu needs a CUDA device, not cpu"):
        execution(device=CPU, dataset=dataset)


@pytest.mark.parametrize(
    ("setting", "device", "precision", "processes", "macs", "captured", "because"),
    [
        ("auto", GPU, "bf16", SINGLE, SMALL, True, ""),
        ("auto", GPU, "fp32", SINGLE, SMALL, True, ""),
        ("auto", GPU, "bf16", SINGLE, BIG, False, "busy"),
        ("auto", GPU, "fp16", SINGLE, SMALL, False, "fp16"),
        ("auto", GPU, "bf16", TWO, SMALL, False, "several processes"),
        ("auto", CPU, "fp32", SINGLE, SMALL, False, ""),  # nobody expects it there
        ("auto", CPU, "bf16", TWO, BIG, False, ""),
        ("on", GPU, "bf16", SINGLE, SMALL, True, ""),
        ("on", GPU, "fp32", SINGLE, BIG, True, ""),
        ("off", GPU, "bf16", SINGLE, SMALL, False, ""),
        ("off", GPU, "fp16", TWO, BIG, False, ""),
        ("off", CPU, "fp32", SINGLE, SMALL, False, ""),
    ],
)
def test_when_steps_are_captured(setting, device, precision, processes, macs, captured, because):
    found = execution(precision, device, processes, macs, capture=setting)
    assert found.capture is captured
    assert because in found.because
    assert bool(found.because) == bool(because)


@pytest.mark.parametrize(
    ("device", "precision", "processes", "because"),
    [
        (CPU, "fp32", SINGLE, "CUDA graphs need a CUDA device"),
        (GPU, "fp16", SINGLE, "gradient scaler of fp16"),
        (GPU, "bf16", TWO, "several processes"),
    ],
)
def test_capture_that_cannot_be_is_refused(device, precision, processes, because):
    with pytest.raises(UserError, match=rf"^capture=on is not possible \(.*{because}.*\): use capture=auto$"):
        execution(precision, device, processes, capture="on")


def test_a_method_whose_steps_all_differ_is_not_captured():
    method = replace(make_config().method, name="probmask")
    assert execution(steps_differ=True, method=method).because == "probmask decides on the host in every step"
    with pytest.raises(UserError, match=r"^capture=on is not possible \(probmask decides"):
        execution(steps_differ=True, method=method, capture="on")


def test_what_keeps_the_device_busy_is_one_pass():
    assert not execution(macs=BIG, batch_size=128).capture
    assert execution(macs=BIG, batch_size=128, accumulate=8).capture
    assert execution(macs=BIG, batch_size=16).capture
    assert not execution(macs=SMALL, batch_size=25_000).capture


@pytest.mark.parametrize(
    ("setting", "device", "epochs", "compiled"),
    [
        ("auto", GPU, 10, True),  # 3900 steps
        ("auto", GPU, 5, False),  # 1950
        ("auto", CPU, 1000, False),
        ("on", GPU, 1, True),
        ("on", CPU, 1, True),
        ("off", GPU, 1000, False),
    ],
)
def test_when_the_network_is_compiled(setting, device, epochs, compiled):
    for capture in ("auto", "off"):
        for processes in (SINGLE, TWO):
            found = execution("fp32", device, processes, compile=setting, capture=capture, epochs=epochs)
            assert found.compile is compiled
