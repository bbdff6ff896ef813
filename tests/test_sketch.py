"""From a configuration to steps, shapes and costs, and how steps are executed; nothing is computed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from config_cases import load
from times_cases import write_times
from torch import nn

from st3.config import Config, Selection
from st3.data import AugmentationConfig, DatasetConfig, Facts, build_data, dataset_facts
from st3.errors import UserError
from st3.measure import Times, layer_macs
from st3.models import ModelConfig
from st3.optim.lr_schedules import ConstantSettings
from st3.optim.optimizers import SGD, AdamW
from st3.sketch import Execution, choose_execution, find_times, make_plan, make_sparsifier, sketch
from st3.sparsify import METHODS, ST3, Dense
from st3.sparsify.methods import GMP, GraNet, ProbMask, RigL
from st3.sparsify.schedules import AlternatingSettings, RampSettings
from st3.sparsify.schedules import ConstantSettings as Always
from st3.training.distributed import SINGLE, Processes
from st3.training.machine import Machine
from st3.training.run_directory import RunDirectory

FACTS = Facts(classes=10, train_images=1000, val_images=0, test_images=100)
MACS = 1024 * (27 * 16 + 6 * 9 * 16 * 16) + 10 * 64  # ResNet-20 on 32×32 pixels: stem, first stage, classifier
for channels, positions in ((32, 256), (64, 64)):  # a first convolution and a shortcut with half as many inputs
    MACS += positions * channels**2 * (5 * 9 + (9 + 1) // 2)


def fake_dataset(**changes) -> DatasetConfig:
    facts = {"classes": 10, "channels": 1, "image_size": 16, "mean": [0.5], "std": [0.5]}
    facts |= {"train_images": 1000, "test_images": 100}
    return DatasetConfig(name="fake", **facts | changes)


def make_config(*, start="0", end="50%", power=3.0, **changes) -> Config:
    settings = {
        "model": ModelConfig(name="resnet20"),
        "dataset": fake_dataset(),
        "method": ST3(),
        "sparsity": 0.9,
        "schedule": RampSettings(start=start, end=end, power=power),
        "optimizer": SGD(),
        "lr_schedule": ConstantSettings(),
        "epochs": 10,
        "batch_size": 100,
    }
    return Config(**settings | changes)


def test_a_pass_of_one_image_has_none_to_be_mixed_with():
    config = make_config(batch_size=4, accumulate=2, augmentation=AugmentationConfig(cutmix=1.0))
    make_plan(config, FACTS)
    with pytest.raises(UserError, match=r"^batch_size=4 leaves one image to a forward pass, .* augmentation.cutmix=0$"):
        make_plan(config, FACTS, Processes(world_size=2))
    make_plan(replace(config, augmentation=AugmentationConfig(erasing=0.5)), FACTS, Processes(world_size=2))


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
    dataset = fake_dataset(classes=3, image_size=8, val_images=7, train_images=110, test_images=5)
    config = make_config(dataset=dataset, batch_size=16, accumulate=accumulate)
    facts = dataset_facts(dataset)
    assert facts == Facts(3, 103, 7, 5)
    data, plan = build_data(dataset, batch_size=16 // accumulate, seed=0, device="cpu"), make_plan(config, facts)
    sizes = [len(labels) for _, labels in data.train.epoch(0)]
    assert set(sizes) == {16 // accumulate}
    assert len(sizes) // accumulate == plan.steps_per_epoch == 6
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (103, 7, 5)


def test_a_batch_larger_than_the_data_is_refused():
    message = refused(make_config(batch_size=1001))
    assert message == "batch_size=1001 is larger than the 1000 training images: lower batch_size"


def test_settings_arrive_in_the_plan():
    plan = make_plan(
        make_config(label_smoothing=0.1, clip_norm=2.0, seed=5, eval_every=3, log_every=7, accumulate=2, sparsity=0.7),
        FACTS,
    )
    assert (plan.label_smoothing, plan.clip_norm, plan.seed, plan.eval_every) == (0.1, 2.0, 5, 3)
    assert (plan.log_every, plan.accumulate, plan.lr, plan.target_sparsity) == (7, 2, 0.1, 0.7)
    assert (plan.epochs, plan.batch_size) == (10, 100)


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
    assert message == "schedule.end=50% (step 50) comes before schedule.start=60% (step 60)"


@pytest.mark.parametrize("end", ["10.1ep", "101st", "101%"])
def test_a_ramp_that_ends_after_training_is_refused(end):
    message = refused(make_config(end=end))
    assert f"schedule.end={end} (step 101) comes after the end of training (step 100)" in message


def test_alternating_phases_end_with_the_training_at_the_latest():
    schedule = AlternatingSettings(start="10%", period="20%", last_dense="70%", end="100%")
    found = values(make_plan(make_config(schedule=schedule, sparsity=0.6), FACTS))
    assert found == [0] * 10 + [0.6] * 20 + [0] * 20 + [0.6] * 20 + [0] * 29 + [0.6]


def test_constant_and_dense():
    constant = make_plan(make_config(schedule=Always(), sparsity=0.6), FACTS)
    assert set(values(constant)) == {0.6}
    dense = make_plan(make_config(method=Dense(), sparsity=0.6), FACTS)
    assert set(values(dense)) == {0.0}
    assert (constant.target_sparsity, dense.target_sparsity) == (0.6, 0.0)


# Sketches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_of_any_method_a_sketch_has_shapes_and_costs_and_no_weights(method):
    config = load(f"method={method}", "dataset=cifar10")
    run = sketch(config)
    assert {p.device.type for p in run.model.parameters()} == {"meta"}
    assert run.facts == Facts(10, 50_000, 0, 10_000)
    assert run.plan == make_plan(config, run.facts)
    assert sum(run.macs.values()) == sum(row.macs_dense for row in run.rows) == MACS
    assert sum(row.params for row in run.rows if row.pruned) == run.sparsifier.prunable == 270_896
    assert not any(row.zeros for row in run.rows)
    assert run.sparsifier.method == config.method
    assert run.sparsifier.schedule == run.plan.sparsity


def test_what_a_sketch_makes_has_weights_and_is_of_its_shapes():
    run = sketch(make_config(optimizer=AdamW(lr=0.01)))
    torch.manual_seed(1)
    model = run.make_model()
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in run.model.named_parameters()
    ]
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    optimizer = run.make_optimizer(model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    sparsifier = run.make_sparsifier(model)
    assert sparsifier.pruned_layers == run.sparsifier.pruned_layers
    sparsifier.attach(optimizer)  # it is not yet


def test_the_model_takes_its_sizes_from_the_data():
    run = sketch(make_config(dataset=fake_dataset(classes=7, channels=3, mean=[0.5] * 3, std=[0.5] * 3)))
    assert run.model(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 7)


def test_a_vision_transformer_takes_the_size_of_the_images_and_all_its_projections_are_pruned():
    run = sketch(load("model.name=vit_b_16", "dataset=cifar10", "dataset.image_size=32"))
    with torch.device("meta"):
        expected = torchvision.models.vit_b_16(num_classes=10, image_size=32)
    assert sum(p.numel() for p in run.model.parameters()) == sum(p.numel() for p in expected.parameters())
    matrices = sum(p.numel() for name, p in expected.named_parameters() if p.ndim > 1 and "token" not in name)
    assert run.sparsifier.prunable == matrices - expected.encoder.pos_embedding.numel()
    assert sum(name.endswith(".in_proj") for name in run.sparsifier.pruned_layers) == 12


@pytest.fixture
def times(tmp_path):
    """A file of those of the ResNet-20 of `make_config`."""
    write_times(tmp_path / "times.json", (1, 16, 16), 10)
    return str(tmp_path / "times.json")


def test_a_target_of_time_takes_the_measured_times(times):
    aimed = {"selection": Selection(target="latency", times=times), "sparsity": 0.3}
    run = sketch(make_config(**aimed))
    assert run.times == Times.read(Path(times))
    with pytest.raises(UserError, match=r"^sparsity=0\.9 is more than target=latency can remove"):
        sketch(make_config(selection=Selection(target="latency", times=times)))
    method = ST3(cost_exponent=0.5, cost="time")
    assert sketch(make_config(method=method, selection=Selection(times=times))).sparsifier.prunable > 0
    write_times(Path(times), (1, 16, 16), 10, model="resnet32")
    with pytest.raises(UserError, match=r"^method\.times=.*\.json has times of model\.name=resnet32, not resnet20"):
        sketch(make_config(**aimed))
    write_times(Path(times), (1, 16, 16), 10, input=(1, 32, 32))
    with pytest.raises(UserError, match=r"^method\.times=.* has times of images of 1×32×32, not 1×16×16"):
        sketch(make_config(**aimed))
    write_times(Path(times), (1, 16, 16), 10)
    with pytest.raises(UserError, match=r"^method\.times is of another network: fc has 640 weights there, 192 here"):
        sketch(make_config(dataset=fake_dataset(classes=3), **aimed))
    with pytest.raises(UserError, match=r"^method\.times: cannot read nowhere\.json \(No such file or directory\)$"):
        sketch(make_config(selection=Selection(target="latency", times="nowhere.json"), sparsity=0.3))


def test_where_the_file_of_times_is_gone_the_run_has_a_copy(times, tmp_path):
    directory = RunDirectory(tmp_path)
    config = make_config(
        selection=Selection(target="latency", times="gone.json"), sparsity=0.3, run_dir=str(directory.path)
    )
    assert find_times(config) == Times.read(directory.times)
    with pytest.raises(UserError, match=r"^method\.times: cannot read gone\.json"):
        find_times(replace(config, run_dir=str(tmp_path / "new")))


def test_what_cannot_be_fitted_together_is_named():
    with pytest.raises(UserError, match=r"^dataset\.val_images=50"):
        sketch(make_config(dataset=fake_dataset(classes=3, val_images=50, train_images=50, test_images=5)))
    with pytest.raises(UserError, match=r"^method\.include: no Conv2d or Linear layer is named like 'foo\*'$"):
        sketch(make_config(selection=Selection(include=["foo*"])))
    with pytest.raises(UserError, match=r"^method\.every=0 must be at least one optimizer step$"):
        sketch(make_config(method=GMP(every="0")))
    with pytest.raises(UserError, match=r"follows no ramp: schedule=constant$"):
        sketch(make_config(method=RigL()))


@pytest.mark.parametrize("target", ["flops", "latency"])
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"st3", "st3_sigma", "hard_ste", "feather", "dense"}))
def test_most_methods_count_weights_only(method, target, times):
    schedule = {"constant": Always(), "acdc": AlternatingSettings()}.get(METHODS[method].follows, RampSettings())
    selection = Selection(target=target, times=times if target == "latency" else None)
    config = make_config(method=METHODS[method](), schedule=schedule, selection=selection, sparsity=0.3)
    with pytest.raises(
        UserError, match=rf"^method\.target={target} is for st3, st3_sigma, hard_ste and feather: this method counts"
    ):
        sketch(config)


def test_the_sparsifier_prunes_what_is_chosen_and_counts_what_is_asked():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    macs = layer_macs(model, (1, 8, 8))
    config = make_config(selection=Selection(exclude=["0"], target="flops"), schedule=Always(), sparsity=0.5)
    sparsifier = make_sparsifier(config, make_plan(config, FACTS), model, macs)
    assert sparsifier.pruned_layers == ["1", "3"]
    optimizer = config.optimizer.build(model)
    sparsifier.attach(optimizer)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    removed = 16 * int((model[1].weight == 0).sum()) + int((model[3].weight == 0).sum())
    assert removed == pytest.approx(0.5 * (macs["1"] + macs["3"]), abs=16)


def test_intervals_of_a_method_are_fractions_of_the_training():
    def updates(epochs: int, **settings) -> list[int]:
        config = make_config(method=RigL(**settings), schedule=Always(), epochs=epochs)
        return make_sparsifier(config, make_plan(config, FACTS), network, {}).mask_updates()

    network = nn.Linear(8, 8)
    assert updates(10) == list(range(1, 75))
    assert updates(100) == list(range(10, 750, 10))
    assert updates(10, every="1ep", until="55st") == [10, 20, 30, 40, 50]
    assert updates(1) == list(range(1, 8))  # 1 % is less than a step


@pytest.mark.parametrize("method", [RigL(until="110%"), GraNet(until="110%"), ProbMask(until="110%")])
def test_masks_that_would_settle_after_the_end_are_refused(method):
    schedule = Always() if isinstance(method, RigL) else RampSettings()
    with pytest.raises(
        UserError, match=r"^method\.until=110% \(step 110\) comes after the end of training \(step 100\)"
    ):
        sketch(make_config(method=method, schedule=schedule))


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
    data = build_data(dataset, batch_size=96 // accumulate, seed=0, device="cpu", rank=1, world_size=4)
    assert {len(labels) for _, labels in data.train.epoch(0)} == {96 // accumulate // 4}


# How steps are executed -----------------------------------------------------------------------------------------------

CPU, GPU, TWO = torch.device("cpu"), torch.device("cuda"), Processes(0, 0, 2)
SMALL, BIG = 40_000_000, 4_000_000_000  # MACs of ResNet-20 on 32 pixels and of ResNet-50 on 224
SKETCH = sketch(make_config())


def execution(precision="bf16", device=GPU, processes=SINGLE, macs=SMALL, **changes) -> Execution:
    config = make_config(**{"batch_size": 128} | changes)
    plan = make_plan(config, Facts(10, 50_000, 0, 100), processes)
    run = replace(SKETCH, config=config, plan=plan, macs={"layer": macs})
    return choose_execution(run, Machine(device, precision, processes))


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
