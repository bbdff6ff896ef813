"""What is said before a run and after it, and which warnings go with it."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from config_cases import load
from times_cases import write_times
from training.training_cases import SUMMARY

from st3.config import Selection
from st3.describe import describe_layers, describe_recipe, describe_result, summarize, warnings_before
from st3.measure import LayerRow
from st3.sketch import Execution, Sketch, sketch
from st3.sparsify import ST3, Dense, Method, ScheduleSettings
from st3.sparsify.methods import ACDC, GMP, SET, STR, Feather, GraNet, ProbMask, RigL, TopKAST
from st3.sparsify.schedules import AlternatingSettings, ConstantSettings, RampSettings
from st3.training.distributed import Processes
from st3.training.machine import Machine

CPU = Machine(torch.device("cpu"))
PLAIN = Execution(compile=False, capture=False)
FAKE = (
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=400", "dataset.test_images=50", "batch_size=10",
    "epochs=10",
)  # fmt: skip
"""400 optimizer steps, 40 in an epoch."""
RAMP, CONSTANT = RampSettings(), ConstantSettings()


def fake(method: Method | None = None, schedule: ScheduleSettings = RAMP, **changes) -> Sketch:
    """Of `FAKE` with another method and a schedule that it can follow."""
    return sketch(replace(load(*FAKE), method=method or ST3(), schedule=schedule, **changes))


def said(run: Sketch, machine: Machine = CPU, execution: Execution = PLAIN) -> dict[str, str]:
    """The recipe's lines by their subject."""
    lines = [line.split(maxsplit=1) for line in describe_recipe(run, machine, execution).splitlines()]
    return {subject: text.strip() for subject, text in lines}


# The recipe -----------------------------------------------------------------------------------------------------------


def test_a_recipe_in_words():
    found = said(sketch(load("recipe=imagenet_resnet50")))
    assert found == {
        "model": "resnet50, 3×224×224 input, 1000 classes, kaiming_normal initialization",
        "data": "imagenet: 1,281,167 training, 50,000 test images, augmentation random_resized_crop",
        "method": "st3: soft threshold, rescaled, straight-through gradient",
        "pruned": "54 of 54 Conv and Linear layers, 25,502,912 weights; biases and normalisation stay dense",
        "sparsity": "0 up to step 12,510 (epoch 5), ramp of power 3 to 90.00% of the weights at step 125,100 "
        "(epoch 50), constant from there",
        "masks": "change in every step that is sparse",
        "steps": "250,200 optimizer steps: 100 epochs of 2,502, batch 512",
        "optimizer": "sgd, weight decay 5e-05, momentum 0.875, nesterov False, gradient clipped to norm 3",
        "rate": "cosine, peak 0.2, first step 1.6e-05, last 8.73e-12, warm-up over 12,510 steps",
        "loss": "cross-entropy, label smoothing 0.1",
        "precision": "fp32 on cpu",
        "seed": "0",
    }


def test_what_is_chosen_is_said():
    options = "dataset=fake", "model=wide_resnet", "method=st3_sigma", "optimizer=adamw", "lr_schedule=multistep"
    changes = "dataset.image_size=8", "batch_size=10", "epochs=3", "model.depth=10", "model.dropout=0.3", "seed=3"
    changes += "dataset.val_images=40", "clip_norm=0", "ema=0.99", "accumulate=2", "method.shrink=hard"
    found = said(sketch(load(*options, *changes, "method.exclude=[fc,*.shortcut]", "method.rescale=false")))
    assert found["model"].startswith("wide_resnet (depth 10, width 10, dropout 0.3), 3×8×8 input, 10 classes")
    assert found["data"] == "fake: 472 training, 40 validation, 256 test images, augmentation none"
    assert found["method"] == (
        "st3_sigma: hard threshold, not rescaled, straight-through gradient, magnitudes in units of σ per layer"
    )
    assert found["pruned"].endswith("; dense: layer1.0.shortcut, layer2.0.shortcut, layer3.0.shortcut, fc")
    assert found["steps"] == "141 optimizer steps: 3 epochs of 47, batch 10 in 2 passes"
    assert found["optimizer"] == "adamw, weight decay 0.05, betas (0.9, 0.999), eps 1e-08"
    assert found["rate"] == "multistep, peak 0.001, first step 0.001, last 1e-05, ×0.1 at steps 70, 106"
    assert found["seed"] == "3; average of the raw weights with decay 0.99"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("augmentation=strong", "RandAugment (2 operations, magnitude 9), erasing 0.25, mixup 0.8 or cutmix 1"),
        (
            "dataset.augment=crop_flip augmentation.policy=randaugment augmentation.operations=1 "
            "augmentation.magnitude=14 augmentation.mixup=0.2",
            "crop_flip, RandAugment (1 operation, magnitude 14), mixup 0.2",
        ),
        ("augmentation=light", "TrivialAugment, erasing 0.1"),
        ("augmentation.cutmix=1", "cutmix 1"),
        ("augmentation=none", "none"),
    ],
)
def test_augmentation_in_words(words, text):
    found = said(sketch(load(*FAKE, *words.split())))["data"]
    assert found == f"fake: 400 training, 50 test images, augmentation {text}"


def test_settings_of_other_methods_are_listed():
    assert said(fake(RigL(every="20st"), CONSTANT))["method"] == (
        "rigl: allocation erk, growth gradient, every 20st, until 75%, drop 0.3"
    )
    assert said(fake(ACDC(), AlternatingSettings()))["method"] == "acdc"


def test_thresholding_methods_say_how_they_shrink_and_what_gets_a_gradient():
    feather = "feather: soft threshold of exponent 3, not rescaled, straight-through gradient"
    assert said(fake(Feather()))["method"] == feather
    assert said(fake(Feather(theta=0.25)))["method"] == f"{feather}, times 0.25 where zeroed"
    method = ST3(gradient="rescaled", dead_channels="masked", min_density=0.05)
    assert said(fake(method))["method"] == (
        "st3: soft threshold, rescaled, gradient times κ, none for dead channels, each layer keeps 5.00%"
    )


@pytest.mark.parametrize(
    ("precision", "processes", "execution", "text"),
    [
        ("fp32", 1, PLAIN, "fp32 on cuda:1"),
        ("bf16", 4, Execution(compile=True, capture=True), "bf16 on cuda:1, 4 processes, compiled, steps captured"),
        ("fp16", 1, Execution(False, False, "reasons"), "fp16 on cuda:1, steps not captured (reasons)"),
    ],
)
def test_how_steps_are_executed(precision, processes, execution, text):
    machine = Machine(torch.device("cuda", 1), precision, Processes(world_size=processes))
    assert said(fake(), machine, execution)["precision"] == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"schedule": RampSettings(start="3ep")},
            "0 up to step 120 (epoch 3), ramp of power 3 to 90.00% of the weights at step 200 (epoch 5), constant from "
            "there",
        ),
        ({"schedule": CONSTANT, "sparsity": 0.625}, "62.50% of the weights from the first step on"),
        (
            {"schedule": CONSTANT, "selection": Selection(target="flops")},
            "90.00% of the pruned layers' MACs from the first step on",
        ),
        ({"method": Dense()}, "0 throughout"),
        ({"sparsity": 0.0}, "0 throughout"),
    ],
)
def test_the_sparsity_over_training_in_words(changes, text):
    assert said(fake(**changes))["sparsity"] == text


def test_phases_in_words():
    text = said(fake(ACDC(), AlternatingSettings()))["sparsity"]
    assert ", 90.00% of the weights and 0 in turn for 20 steps each, 0 from step 300, 90.00% from step 340 on" in text


def test_a_sparsity_that_is_an_outcome_is_called_one():
    assert said(fake(STR(), CONSTANT, sparsity=0.8))["sparsity"] == (
        "an outcome of its settings, to be compared with 80.00% of the weights; st3 search finds those for it"
    )
    assert said(fake(STR(), CONSTANT, sparsity=0.0))["sparsity"] == "0 throughout"


def test_of_a_dense_run_it_is_said_that_nothing_is_pruned():
    found = said(fake(Dense()))
    assert found["method"] == "dense: no weight is pruned (sparsity=0.9 has no effect)"
    assert found["pruned"] == "nothing; 270,896 weights are prunable"
    assert "masks" not in found
    assert said(fake(sparsity=0.0))["method"] == "st3: no weight is pruned"


def test_parameters_that_no_method_touches_are_named():
    run = sketch(load("model.name=vit_b_16", "dataset=cifar10"))
    assert said(run)["pruned"] == (
        "50 of 50 Conv and Linear layers, 85,532,160 weights; biases and normalisation stay dense; class_token, "
        "encoder.pos_embedding stay as they are"
    )
    assert "stay as they are" not in said(fake())["pruned"]


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "schedule", "text"),
    [
        (TopKAST(), CONSTANT, "change in every step that is sparse"),
        (RigL(every="20st", until="281st"), CONSTANT, "change 14 times, first at step 20, last at step 280"),
        (SET(every="20st", until="280st"), CONSTANT, "change 13 times, first at step 20, last at step 260"),
        (RigL(every="200st"), CONSTANT, "change once, at step 200"),
        (RigL(every="300st"), CONSTANT, "never change"),
        # When the ramp begins, after each interval, when it is over.
        (GMP(every="20st"), RAMP, "change 10 times, first at step 21, last at step 200"),
        (GMP(every="90st"), RAMP, "change 4 times, first at step 21, last at step 200"),
        (GraNet(every="50st"), RAMP, "change 7 times, first at step 50, last at step 350"),
        (ACDC(), AlternatingSettings(period="50st"), "change 7 times, first at step 40, last at step 340"),
        (ProbMask(until="80%"), RAMP, "drawn anew in 320 steps, hard from step 319 on"),
    ],
)
def test_when_masks_change(method, schedule, text):
    assert said(fake(method, schedule))["masks"] == text
    assert "masks" not in said(fake(method, schedule, sparsity=0.0))


@pytest.mark.parametrize(
    ("method", "schedule", "warning"),
    [
        (RigL(every="50st"), CONSTANT, None),  # 5 times
        (RigL(every="60st"), CONSTANT, "only 4 times: train longer, or shorten method.every"),
        (GMP(every="90st"), RAMP, "only 4 times: train longer, or shorten method.every"),
        (ACDC(), AlternatingSettings(period="150st"), "only 3 times: train longer, or shorten schedule.period"),
        (RigL(every="200st"), CONSTANT, "only once: train longer, or shorten method.every"),
        (ST3(), RAMP, None),
        (Dense(), RAMP, None),
    ],
)
def test_masks_that_hardly_change_are_warned_of(method, schedule, warning):
    assert warnings_before(fake(method, schedule)) == ([f"the masks change {warning}"] if warning else [])
    assert not warnings_before(fake(method, schedule, sparsity=0.0))


def test_masks_that_never_change_are_warned_of_in_words():
    [warning] = warnings_before(fake(RigL(every="300st"), CONSTANT))
    assert warning == "the masks never change: train longer, or shorten method.every"


# What came out --------------------------------------------------------------------------------------------------------


def summary_of(run: Sketch, sparsity: float, of_data: Sequence[str] = (), guessing_steps=0, constant=False, changes=()):
    """After a run whose only layer lost that much."""
    zeros = round(10_000 * sparsity)
    rows = [LayerRow("fc", "100×100", 10_000, True, zeros, sparsity, 0.1, 10_000, 10_000 - zeros, zeros == 10_000)]
    rows.append(LayerRow("conv", "1×1", 1, False, 0, 0.0, 0.0, 50, 50, False))
    state = SimpleNamespace(
        scores={"epoch": 10, "test_top1": 50.0, "test_top5": 90.0, "test_constant": constant}, epoch=10, step=400,
        seconds=1.239, warmup_seconds=0.1, data_seconds=0.0, guessing_steps=guessing_steps, best={},
        saving_seconds=0.0, changes=list(changes),
    )  # fmt: skip
    data = SimpleNamespace(warnings=lambda: list(of_data))
    return summarize(run, state, data, rows, "outputs/x", CPU)


def test_a_summary_counts_what_is_there():
    found = summary_of(fake(GMP(every="20st"), seed=3), 0.9)
    assert (found.zeros, found.prunable, found.macs_dense, found.macs, found.sparsity) == (
        9000,
        10_000,
        10_050,
        1050,
        0.9,
    )
    assert (found.top1, found.top5, found.val_top1, found.sparsity_target, found.target) == (
        50,
        90,
        None,
        0.9,
        "weights",
    )
    assert (found.epochs, found.steps, found.seconds, found.processes) == (10, 400, 1.24, 1)
    assert (found.method, found.model, found.dataset, found.seed) == ("gmp", "resnet20", "fake", 3)
    assert (found.mask_updates, found.warnings, found.finished) == (10, [], False)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        (ST3(), "lower sparsity, or set method.min_density=0.01"),
        (ST3(min_density=0.001), "lower sparsity"),
        (RigL(), "lower sparsity"),
    ],
)
def test_a_layer_without_a_weight_is_named_with_what_to_change(method, remedy):
    schedule = CONSTANT if isinstance(method, RigL) else RAMP
    found = summary_of(fake(method, schedule), 1.0)
    assert found.dead_layers == ["fc"]
    assert f"fc is wholly zero and passes nothing on: {remedy}" in found.warnings
    assert not summary_of(fake(method, schedule), 0.9999).dead_layers


@pytest.mark.parametrize(("steps", "said"), [(0, False), (199, False), (200, True), (400, True)])
def test_a_loss_that_stays_at_that_of_guessing_is_said(steps, said):
    found = summary_of(fake(), 0.9, guessing_steps=steps).warnings
    text = "the loss has not been below that of guessing (ln 10 = 2.30) for 200 steps and more: lower optimizer.lr"
    assert found == ([text] if said else [])


def test_logits_that_do_not_depend_on_the_image_are_said():
    dead, alive = (summary_of(fake(), 0.9, constant=each) for each in (True, False))
    assert dead.constant_logits
    assert dead.warnings == [
        "the logits are the same for all test images: it has learned nothing, or nothing of that is left"
    ]
    assert (alive.constant_logits, alive.warnings) == (False, [])


def test_what_was_warned_of_before_stands_in_the_summary():
    run = fake(RigL(every="60st"), CONSTANT)
    found = summary_of(run, 0.9)
    assert (found.mask_updates, found.warnings) == (4, warnings_before(run))
    assert found.warnings


def test_what_was_changed_on_the_way_stands_in_the_summary():
    assert summary_of(fake(), 0.9, changes=["optimizer.lr was changed"]).warnings == ["optimizer.lr was changed"]


def test_what_was_left_out_of_the_data_stands_in_the_summary():
    assert summary_of(fake(), 0.9, of_data=["2 files"]).warnings == ["2 files"]


@pytest.mark.parametrize(
    ("sparsity", "warned"), [(0.8, False), (0.804, False), (0.796, False), (0.79, True), (0.81, True)]
)
def test_a_sparsity_that_came_out_elsewhere_is_warned_of(sparsity, warned):
    found = summary_of(fake(STR(), CONSTANT, sparsity=0.8), sparsity)
    assert found.mask_updates is None
    expected = f"str came out at {sparsity:.2%}, not at 80.00%: st3 search finds the setting for it"
    assert found.warnings == ([expected] if warned else [])
    assert not summary_of(fake(TopKAST(), CONSTANT, sparsity=0.8), sparsity).warnings


def test_the_result_in_words():
    text = describe_result(SUMMARY(val_top1=45.5, val_top5=80.0, warnings=["first", "second"]))
    assert text.splitlines() == [
        "top-1      50.00 % (top-5 90.00 %) on the test images, validation 45.50 %",
        "sparsity   50.0000% (target 50.00%): 6 of 12 weights are zero",
        "MACs       21 dense → 15 (71.4%)",
        "time       1.0 s, 2 epochs, 8 steps; warm-up 0.5 s, waiting for data 0.1 s, for checkpoints 0.0 s",
        "memory     0.00 GB at the peak",
        "run        run",
        "next       st3 bench run (what its zeros save here), st3 export (ONNX, MNN, …)",
        "warning    first",
        "warning    second",
    ]


def test_a_target_of_macs_is_compared_with_macs():
    lines = describe_result(SUMMARY(target="flops", sparsity_target=0.3)).splitlines()
    assert lines[1] == "sparsity   50.0000%: 6 of 12 weights are zero"
    assert lines[2] == "MACs       21 dense → 15 (28.5714% removed (target 30.00%))"


def test_times_are_said_to_be_modelled_from_a_file():
    times = {"modelled_ms_dense": 2.0, "modelled_ms": 1.25, "modelled_from": "t.json (MNN 3.6.1, EPYC)"}
    lines = describe_result(SUMMARY(target="latency", sparsity_target=0.375, **times)).splitlines()
    assert lines[1] == "sparsity   50.0000%: 6 of 12 weights are zero"
    assert lines[2] == "MACs       21 dense → 15 (71.4%)"
    assert lines[3] == (
        "modelled   2 ms dense → 1.25 ms in the pruned layers (37.5000% removed (target 37.50%)), modelled from times "
        "of t.json (MNN 3.6.1, EPYC)"
    )
    assert "(37.5000% removed), modelled" in describe_result(SUMMARY(sparsity_target=0.5, **times))
    assert "modelled" not in describe_result(SUMMARY())


def test_a_target_of_time_in_words(tmp_path):
    path = tmp_path / "times.json"
    times = write_times(path, (3, 8, 8), 10)
    method = ST3(cost_exponent=0.5, cost="time")
    run = fake(method, CONSTANT, selection=Selection(target="latency", times=str(path)), sparsity=0.625)
    found, dense = said(run), sum(each.dense_ms for each in times.layers.values())
    assert found["sparsity"] == "62.50% of the pruned layers' measured time from the first step on"
    assert found["times"] == (
        f"{path} (MNN 3.6.1, EPYC, 1 thread, batch 1, 2026-11-28): the pruned layers take {dense:.4g} ms dense, 2.2 ms "
        "with all weights zero"
    )
    assert found["method"].endswith(", thresholds times (time of one weight of the layer)^0.5")
    by_macs = said(fake(ST3(cost_exponent=0.25)))["method"]
    assert by_macs.endswith(", thresholds times (MACs of one weight of the layer)^0.25")
    assert "times" not in said(fake())
    summary = summary_of(run, 0.99)  # of its only layer 100 weights are left
    assert (summary.modelled_ms_dense, summary.modelled_ms) == pytest.approx((0.1 + 640 * 5e-5, 0.1 + 100 * 1e-4))
    assert summary.modelled_from == f"{path} (MNN 3.6.1, EPYC, 1 thread, batch 1, 2026-11-28)"
    assert summary_of(fake(), 0.99).modelled_from is None


def test_the_layer_table_ends_with_what_is_counted():
    text = describe_layers(fake(selection=Selection(exclude=["fc"])).rows)
    total = 270_896 - 64 * 10
    assert text.endswith(f"\n\n{total:,} prunable weights, 2,551,424 MACs dense (multiply-accumulates of Conv2d and "
                         "Linear layers, batch 1)")  # fmt: skip
    assert text.splitlines()[0].split()[:3] == ["layer", "shape", "weights"]
