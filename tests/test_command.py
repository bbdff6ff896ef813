"""The real command: in this process where only its words matter, as a process of its own where that matters."""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from command_cases import TINY, refused, st3_train
from helpers import assert_same
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from times_cases import write_times

import st3.run
import st3.train
from st3.compose import config_path
from st3.data import DatasetConfig, build_data
from st3.measure import Times
from st3.models import build_model
from st3.training.recorder import RunRecorder
from st3.training.run_directory import RunDirectory
from st3.training.signals import Interruption


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("epoch=3", "epoch is not a setting: did you mean epochs?"),
        ("sparsity=1.0", "sparsity=1 lies outside [0, 1)"),
        ("schedule.start=60%", "schedule.end=50% (step 155) comes before schedule.start=60% (step 186)"),
        ("dataset.classes=12", "set dataset.classes=10"),
        ("device=tpu", "device=tpu is not known"),
        ("capture=on device=cpu", "capture=on is not possible (CUDA graphs need a CUDA device): use capture=auto"),
        ("model=resnet5O", "model.name=resnet5O does not exist; did you mean resnet56, resnet50"),
        ("optimizer.nesterov=true optimizer.momentum=0", "optimizer.nesterov=true needs a momentum"),
        ("method=rigl schedule=cubic", "this method is sparse from the first step on and follows no ramp: schedule="),
        ("method=gmp method.every=0", "method.every=0 must be at least one optimizer step"),
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm has no effect on a single run: add -m"),
        ("run_dir=${nothing}", "nothing"),
        ("model=null", "model=null"),
        ("-m sparsity=0.5,0.9 typo=1", "typo is not a setting"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(arguments, says, here):
    code = 3 if arguments.startswith("dataset.classes=") else 2  # the data are not what was typed
    assert says in refused(*arguments.split(), code=code)
    assert list(here.iterdir()) == []


def test_a_corrupt_image_is_named(here):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = here / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    broken = Path("data", "train", "dog", "2.png")
    broken.write_bytes(b"not an image")
    arguments = "dataset=folder", "dataset.root=data", "dataset.image_size=8", "dataset.augment=crop", "batch_size=4"
    assert str(broken) in refused(*arguments, "dataset.workers=0", code=3)
    assert {path.parts[0] for path in map(Path, files_below(here))} == {"data"}


def test_of_several_processes_only_the_first_speaks_and_the_others_leave_it_the_time(here, monkeypatch):
    waited = []
    monkeypatch.setattr(st3.train.time, "sleep", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    answer = st3_train("sparsity=1.5")
    assert (answer.code, answer.out, answer.err, waited) == (2, "", "", [5])
    monkeypatch.setenv("RANK", "0")
    assert "sparsity=1.5 lies outside" in refused("sparsity=1.5")
    assert waited == [5]


# What it says -------------------------------------------------------------------------------------------------------


def test_dry_run_says_everything_and_writes_nothing(here):
    answer = st3_train("recipe=imagenet_resnet50", "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    assert list(here.iterdir()) == []
    assert "25,502,912 prunable weights, 4,089,184,256 MACs dense" in answer.out
    assert answer.line("pruned").startswith("54 of 54 Conv and Linear layers")
    assert answer.line("steps") == "250,200 optimizer steps: 100 epochs of 2,502, batch 512"
    assert answer.line("masks") == "change in every step that is sparse"
    assert answer.line("conv1").split() == ["64×3×7×7", "9,408", "yes", "0", "0.00%", "118,013,952", "118,013,952"]
    assert "warning" not in answer.out


@pytest.mark.slow
def test_help_and_completion_answer_without_pytorch():
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['st3-train', *sys.argv[1:]]; "
    command = [sys.executable, "-c", blocked + "from st3.train import main; main()"]
    answer = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "st3-train recipe=cifar10_resnet20" in answer
    assert len(answer.splitlines()) < 40
    environment = os.environ | {"COMP_LINE": "st3-train schedule=", "COMP_POINT": "19"}
    query = [*command, "-sc", "query=bash"]
    completion = subprocess.run(query, capture_output=True, text=True, check=True, env=environment).stdout
    options = sorted(path.stem for path in Path(config_path(), "schedule").glob("*.yaml"))
    assert completion.split() == [f"schedule={option}" for option in options]


def test_the_installed_command_is_this_entry():
    try:
        importlib.metadata.distribution("st3")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here")
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="st3-train")
    assert entry.load() is st3.train.main


@pytest.mark.parametrize(
    ("options", "compiled"),
    [("", False), ("compile=on", True), ("compile=off capture=auto", False)],
)
def test_a_dry_run_says_how_steps_would_be_executed(options, compiled, here):
    answer = st3_train(*TINY, *options.split(), "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    assert answer.line("precision") == f"fp32 on cpu{', compiled' if compiled else ''}"


# Whole runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run, what was typed for it and what was said."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*TINY, "sparsity=0.8", f"run_dir='{folder}/${{model.name}}-${{sparsity}}'"]
    return folder / "resnet20-0.8", words, st3_train(*words)


GENERATION = "best.pt", "manifest.json", "metrics.csv", "state.pt"


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(whole):
    run, words, answer = whole
    assert (answer.code, answer.err) == (0, "")
    summary = summary_of(run)
    assert summary["finished"] is True
    assert summary["sparsity_target"] == 0.8
    assert abs(summary["zeros"] - 0.8 * summary["prunable"]) <= 1
    assert (summary["epochs"], summary["steps"], summary["processes"]) == (3, 9, 1)
    assert (summary["method"], summary["model"], summary["dataset"], summary["seed"]) == ("st3", "resnet20", "fake", 0)
    assert summary["macs"] < summary["macs_dense"]
    assert (summary["mask_updates"], summary["warnings"]) == (None, [])
    files = files_below(run)
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        *(f"checkpoints/{number}/{name}" for number in (2, 3) for name in GENERATION),
        "best.pt",
        "config.yaml",
        "data.json",
        "environment.yaml",
        "layers.csv",
        "manifest.json",
        "metrics.csv",
        "model.safetensors",
        "overrides.yaml",
        "run.png",
        "summary.json",
    }
    assert f"{summary['zeros']:,} of {summary['prunable']:,} weights are zero" in answer.out
    assert RunDirectory(run).overrides() == words


@pytest.mark.slow
def test_the_file_is_the_network_of_the_summary(whole):
    run, *_ = whole
    summary, network = summary_of(run), build_model("resnet20", classes=7, image_size=8)
    network.load_state_dict(load_file(run / "model.safetensors"))
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum((w == 0).sum().item() for w in weights) == summary["zeros"]
    config = DatasetConfig(
        name="fake", classes=7, channels=3, image_size=8, mean=[0.5] * 3, std=[0.25] * 3, train_images=96,
        test_images=40,
    )  # fmt: skip
    test = build_data(config, batch_size=32, seed=0, device="cpu").test
    with torch.no_grad():
        hits = sum((network.eval()(x).argmax(1) == y).sum().item() for x, y in test.epoch(0))
    assert 100 * hits / 40 == pytest.approx(summary["top1"])
    with safe_open(run / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["model"], len(json.loads(metadata["classes"])), metadata["st3"]) == ("resnet20", 7, summary["st3"])


@pytest.mark.slow
def test_the_summary_says_where_time_and_memory_went(whole):
    run, _, answer = whole
    summary = summary_of(run)
    assert summary["warmup_seconds"] > 0
    assert summary["data_seconds"] >= 0
    assert summary["warmup_seconds"] + summary["data_seconds"] <= summary["seconds"]
    assert 50e6 < summary["peak_memory_bytes"] < 1e12
    warmup, data = (f"{summary[name]:.1f} s" for name in ("warmup_seconds", "data_seconds"))
    assert f"warm-up {warmup}, waiting for data {data}" in answer.line("time")
    assert answer.line("memory") == f"{summary['peak_memory_bytes'] / 1e9:.2f} GB at the peak"
    assert "processes" not in answer.out


@pytest.mark.slow
def test_asked_again_a_run_says_that_it_is_finished_and_asked_for_another_it_refuses(whole):
    run, words, first = whole
    before = {name: (run / name).stat().st_mtime_ns for name in files_below(run)}
    answer = st3_train(*words)
    assert (answer.code, answer.err) == (0, "")
    assert f"{run} holds this run already, finished:\n" in answer.out
    assert answer.line("top-1") == first.line("top-1")
    assert "sparsity=0.8, not 0.7" in refused(*TINY, "sparsity=0.7", f"run_dir={run}")
    assert before == {name: (run / name).stat().st_mtime_ns for name in files_below(run)}


def as_before(stored: dict) -> dict:
    """config.yaml as it was when every method's settings were in it, null where they were another's."""
    keys = {
        "method": "shrink rescale gradient allocation every until drop regrow regrow_final exponent theta "
        "threshold_init threshold_decay probability_lr backward decay",
        "schedule": "start end power period last_dense",
        "optimizer": "lr weight_decay momentum nesterov betas eps",
        "lr_schedule": "warmup milestones gamma final initial",
    }
    old = {group: dict.fromkeys(names.split()) | stored[group] for group, names in keys.items()}
    del old["method"]["layer_sigma"]
    old["method"] |= dict.fromkeys(("shrink", "rescale", "gradient"))  # null: as published
    before = stored | old | {"ema": stored["ema"] or None}
    del before["raw_step"]  # which there was not
    return before


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_also_where_an_earlier_version_began_it(whole, here, monkeypatch):
    checkpoint = RunRecorder.checkpoint

    def then_stop(self, state, content):
        checkpoint(self, state, content)
        if state.epoch == 1:
            raise Interruption(signal.SIGINT)

    command = [*TINY, "sparsity=0.8", "run_dir=parts"]
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "checkpoint", then_stop)
        answer = st3_train(*command)
    assert answer.code == 130
    again = answer.line("stopped by SIGINT; to continue: st3-train")
    assert shlex.split(again) == ["run_dir=parts"]
    assert not Path("parts", "model.safetensors").exists()

    directory = RunDirectory(Path("parts"))
    directory._write_yaml("config.yaml", as_before(directory.config()))
    answer = st3_train(*shlex.split(again))
    assert (answer.code, answer.err) == (0, "")
    assert "continuing parts after epoch 1\n" in answer.out
    assert_same(load_file("parts/model.safetensors"), load_file(whole[0] / "model.safetensors"))


@pytest.mark.slow
def test_the_network_loads_into_the_untouched_torchvision_model(here, no_picture):
    arguments = [*TINY, "model=resnet18", "dataset.image_size=72", "epochs=1", "batch_size=8", "run_dir=run"]
    assert st3_train(*arguments, "dataset.train_images=8", "dataset.test_images=4").code == 0
    model = torchvision.models.resnet18(num_classes=7)
    model.load_state_dict(load_file("run/model.safetensors"))
    layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum((w == 0).sum().item() for w in layers) == summary_of(Path("run"))["zeros"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "size", "model"),
    [
        ("cifar10_resnet20", 32, ""),
        ("cifar10_vgg16", 32, ""),
        ("cifar100_wrn34_2", 16, ""),
        ("imagenet_resnet50", 72, "model=resnet18"),  # whose networks are as they are in torchvision
        ("imagenet_mobilenet_v1", 72, "model.width=0.25"),
        ("fashion_mnist_vit_tiny", 8, ""),
        ("finetune_resnet50", 72, "model.weights= model=resnet18"),
        ("finetune_mobilenet_v2", 32, "model.weights="),
        ("finetune_vit_b_16", 8, "model.weights= model=vit_tiny"),  # whose layers have the same names
        ("finetune_convnext_tiny", 32, "model.weights="),
    ],
)
def test_every_recipe_takes_two_steps(recipe, size, model, here, no_picture):
    held_out = 4 if recipe.startswith("cifar") else 0
    data = f"dataset.train_images={8 + held_out} dataset.test_images=4 dataset.classes=10 dataset.image_size={size}"
    words = (
        f"recipe={recipe} dataset=fake {data} dataset.val_images={held_out} batch_size=4 epochs=1 device=cpu {model}"
    )
    answer = st3_train(*words.split(), "dataset.augment=none", "run_dir=run")
    summary = summary_of(here / "run")
    assert (answer.code, answer.err) == (int(summary["constant_logits"]), "")  # two steps may not be enough
    assert summary["steps"] == 2
    ties = summary["prunable"] // 10**6  # of millions of float32 magnitudes a few are equal
    assert abs(summary["zeros"] - summary["sparsity_target"] * summary["prunable"]) <= 1 + ties
    assert ("val_top1" in summary) == bool(held_out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "method=st3_sigma ema=0.9 method.target=flops optimizer=adamw",
        "method.shrink=hard method.rescale=false method.theta=0 schedule=constant lr_schedule=one_cycle "
        "accumulate=4 precision=bf16",
        "method=dense",
    ],
    ids=["flops", "hard", "dense"],
)
def test_options_work_together(options, here, no_picture):
    answer = st3_train(*TINY, *options.split(), "sparsity=0.9", "run_dir=run")
    assert (answer.code, answer.err) == (0, "")
    summary = summary_of(here / "run")
    if "flops" in options:
        assert summary["macs"] / summary["macs_dense"] == pytest.approx(0.1, abs=1e-4)
    elif options == "method=dense":
        assert (summary["zeros"], summary["sparsity_target"]) == (0, 0)
        assert summary["macs"] == summary["macs_dense"]
    else:
        assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1


@pytest.mark.slow
def test_jobs_of_a_sweep_equal_single_runs_and_outlive_a_broken_one(here, no_picture):
    sweep = st3_train("-m", *TINY, "seed=0,1", "sparsity=1.5,0.8")
    assert sweep.code == 2
    assert sweep.err.count("st3-train: error: sparsity=1.5") == 2
    assert {path.parts[0] for path in map(Path, files_below(here))} == {"outputs"}
    first, second = sorted(path.parent for path in here.rglob("summary.json"))
    *_, page, one, other = sweep.out[sweep.out.index("top-1 measured") :].splitlines()
    assert page == f"report     {first.parent.relative_to(here)}/report.html"
    assert (first.parent / "report.html").stat().st_size > 1e6
    assert [one, other] == [f"failed     [{job}] sparsity=1.5 lies outside [0, 1): try sparsity=0.9" for job in (0, 2)]
    assert [first.name, second.name] == ["1-resnet20-fake-st3-0.8-s0", "3-resnet20-fake-st3-0.8-s1"]
    assert st3_train(*TINY, "seed=1", "sparsity=0.8", "run_dir=alone").code == 0
    alone, one, other = (load_file(folder / "model.safetensors") for folder in (Path("alone"), second, first))
    assert_same(alone, one)
    assert not torch.equal(alone["fc.weight"], other["fc.weight"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="needs hydra-submitit-launcher: pip install '.[slurm]'",
)
def test_a_launcher_carries_jobs_to_other_processes_and_their_mistakes_back(here):
    # What runs on Slurm with submitit_slurm, on this machine.
    command = [sys.executable, "-m", "st3.train", "-m", "hydra/launcher=submitit_local", *TINY, "epochs=1"]
    answer = subprocess.run([*command, "sparsity=1.5,0.8"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "st3-train: error: [0] sparsity=1.5 lies outside [0, 1)" in answer.stderr
    assert "Traceback" not in answer.stderr
    [sweep] = (here / "outputs").iterdir()
    assert answer.stdout == (
        f"jobs go to hydra/launcher=submitit_local; what they say is in outputs/{sweep.name}/submitit/\n"
        f"no report: st3 report outputs/{sweep.name} shows the other jobs\n"
    )
    run = sweep / "1-resnet20-fake-st3-0.8-s0"
    assert {path.name for path in sweep.iterdir()} == {"submitit", run.name}
    summary = summary_of(run)
    assert (summary["finished"], summary["sparsity_target"]) == (True, 0.8)
    said = [path.read_text() for path in sorted((sweep / "submitit").glob("*.out"))]
    assert sum("[1] dataset=fake " in text and "weights are zero" in text for text in said) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="needs hydra-submitit-launcher: pip install '.[slurm]'",
)
def test_jobs_that_ran_elsewhere_are_reported_from_what_they_left(here):
    command = [sys.executable, "-m", "st3.train", "-m", "hydra/launcher=submitit_local", *TINY, "epochs=1"]
    found = subprocess.run([*command, "sparsity=0.8,0.9"], capture_output=True, text=True, check=True).stdout
    [sweep] = (here / "outputs").iterdir()
    assert found.endswith(f"\nreport     outputs/{sweep.name}/report.html\n")
    assert [line.split()[:2] for line in found.splitlines() if line.startswith("st3 ")] == [
        ["st3", "80"],
        ["st3", "90"],
    ]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights_bit_for_bit(here, no_picture):
    options = [*TINY, "ema=0.9", "accumulate=2", "epochs=6", "dataset.train_images=320"]
    whole = st3_train(*options, "run_dir=whole")
    # The number of threads decides the order in which sums are rounded.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "st3.train", *options, "run_dir=killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline, last = time.monotonic() + 120, here / "killed" / "checkpoints" / "1"
        while not last.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed_after = RunDirectory(here / "killed").checkpoint()[0].state["epoch"]
    assert killed_after < 6, "the run ended before it could be killed"

    done = st3_train(*options, "run_dir=killed")
    assert f"continuing killed after epoch {killed_after}" in done.out
    assert done.line("top-1") == whole.line("top-1")
    assert_same(load_file("killed/model.safetensors"), load_file("whole/model.safetensors"))
    steps = [[row["step"] for row in RunDirectory(Path(name)).metrics()] for name in ("whole", "killed")]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_run_with_all_augmentation_is_recorded_and_continues_to_the_same_weights(here, no_picture, monkeypatch):
    command = [
        *TINY,
        "epochs=2",
        "accumulate=2",
        "label_smoothing=0.1",
        "dataset.augment=crop_flip",
        "augmentation=strong",
    ]
    whole = st3_train(*command, "run_dir=whole")
    assert (whole.code, whole.err) == (0, "")
    assert whole.line("data").endswith(
        "augmentation crop_flip, RandAugment (2 operations, magnitude 9), erasing 0.25, mixup 0.8 or cutmix 1"
    )
    assert RunDirectory(Path("whole")).config()["augmentation"] == {
        "policy": "randaugment", "operations": 2, "magnitude": 9, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0,
    }  # fmt: skip
    checkpoint = RunRecorder.checkpoint

    def then_stop(self, state, content):
        checkpoint(self, state, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "checkpoint", then_stop)
        assert st3_train(*command, "run_dir=parts").code == 130
    assert "augmentation.cutmix=1.0, not 0.0" in refused(*command, "augmentation=none", "run_dir=parts")
    assert "continuing parts after epoch 1\n" in st3_train(*command, "run_dir=parts").out
    weights = load_file("whole/model.safetensors")
    assert_same(load_file("parts/model.safetensors"), weights)
    st3_train(*command[:-1], "run_dir=plain")
    assert not torch.equal(load_file("plain/model.safetensors")["conv1.weight"], weights["conv1.weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_run_is_exact_in_every_precision(precision, here):
    assert st3_train(*TINY, f"precision={precision}", "device=cuda", "run_dir=run").code == 0
    summary = summary_of(here / "run")
    assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1


def test_a_dead_network_is_no_success(tmp_path):
    command = *TINY, "model=vgg11_bn", "sparsity=0.9999", f"run_dir={tmp_path}"
    answer = st3_train(*command)
    assert answer.code == 1
    when, *at_the_end = [line for line in answer.out.splitlines() if "the same for all test images" in line]
    assert len(at_the_end) == 1
    assert answer.out.index(when) < answer.out.index("epoch 3/3")
    assert "wholly zero and pass nothing on: lower sparsity, or set method.min_density=0.01" in answer.out
    directory = RunDirectory(tmp_path)
    summary = directory.finished()
    assert summary.constant_logits
    assert summary.dead_layers == [row["name"] for row in directory.layers() if row["dead"] == "True"]
    assert [row["dead_layers"] for row in directory.metrics()][-1] == str(len(summary.dead_layers)) != "0"
    assert st3_train(*command).code == 1  # it is finished, and still no success

    alive = st3_train(*TINY, "model=vgg11_bn", "sparsity=0.9", f"run_dir={tmp_path / 'alive'}")
    assert (alive.code, "wholly zero" in alive.out, "the same for all" in alive.out) == (0, False, False)


STEADY = "schedule.start=0ep", "schedule.end=2ep", "lr_schedule=constant", "lr_schedule.warmup=4st"
"""Settings that do not depend on the length of the training."""


@pytest.mark.parametrize("method", ["st3", "gmp"])
def test_a_lengthened_run_is_the_longer_run(here, no_picture, method):
    settings = *TINY, *STEADY, f"method={method}", *(["method.every=2st"] if method == "gmp" else [])
    st3_train(*settings, "epochs=5", "run_dir=long")
    st3_train(*settings, "epochs=3", "run_dir=short")
    short = RunDirectory(here / "short")
    assert short.finished().epochs == 3
    answer = st3_train("run_dir=short", "epochs=5")
    assert answer.code == 0
    assert "continuing short after epoch 3" in answer.out
    assert short.finished().epochs == 5
    assert (here / "short" / "layers.csv").read_bytes() == (here / "long" / "layers.csv").read_bytes()
    assert_same(load_file(here / "short" / "model.safetensors"), load_file(here / "long" / "model.safetensors"))
    rows, expected = short.metrics(), RunDirectory(here / "long").metrics()
    assert [row | {"images_per_second": ""} for row in rows] == [row | {"images_per_second": ""} for row in expected]
    assert "holds this run already" in st3_train("run_dir=short").out


BY_TIME = *TINY, "method.target=latency", "method.times=times.json", "sparsity=0.4", "method.cost_exponent=0.25"


def test_a_target_of_time_is_met_and_the_run_keeps_the_times(here, no_picture):
    times = write_times(here / "times.json", (3, 8, 8), 7)
    answer = st3_train(*BY_TIME, "run_dir=x")
    assert (answer.code, answer.err) == (0, "")
    assert "40.00% of the pruned layers' measured time at step" in answer.out
    summary = RunDirectory(here / "x").finished()
    assert summary.modelled_removed == pytest.approx(
        0.4, abs=1e-4 / summary.modelled_ms_dense
    )  # a weight takes 1e-4 ms
    assert summary.modelled_ms_dense == pytest.approx(sum(each.dense_ms for each in times.layers.values()))
    assert "modelled from times of times.json (MNN 3.6.1, EPYC" in answer.line("modelled")
    assert Times.read(here / "x" / "times.json") == times


def test_a_run_goes_on_with_the_times_that_it_began_with_and_with_no_others(here, no_picture, monkeypatch):
    write_times(here / "times.json", (3, 8, 8), 7)
    st3_train(*BY_TIME, "run_dir=whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "row", interrupt)
        assert st3_train(*BY_TIME, "run_dir=x").code == 130
    write_times(here / "times.json", (3, 8, 8), 7, date="2026-11-29")
    says = (
        "run_dir=x holds a run with other times than method.times=times.json has now: choose another run_dir, or "
        "restore them from x/times.json"
    )
    assert refused("run_dir=x") == says
    assert refused(*BY_TIME, "run_dir=x") == says
    (here / "times.json").unlink()
    assert st3_train("run_dir=x").code == 0  # with its own copy
    assert_same(load_file(here / "x" / "model.safetensors"), load_file(here / "whole" / "model.safetensors"))


def test_a_lengthened_run_that_is_interrupted_is_not_finished(here, no_picture, monkeypatch):
    st3_train(*TINY, *STEADY, "run_dir=x")
    monkeypatch.setattr(RunRecorder, "row", interrupt)
    assert st3_train("run_dir=x", "epochs=5").code == 130
    monkeypatch.undo()
    assert RunDirectory(here / "x").finished() is None
    monkeypatch.chdir(here)
    assert "after epoch 3" in st3_train("run_dir=x").out
    assert RunDirectory(here / "x").finished().epochs == 5


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["lr_schedule=cosine"], "lr_schedule=cosine would have been another from step 5 on"),
        (["schedule.end=50%"], "schedule=ramp would have been another from step 1 on"),
        (["method=gmp", "method.every=40%"], "method.every=40% would have been another duration"),
        (["schedule.finetune=1ep", "schedule.end=1ep"], "its masks are fixed already"),
    ],
)
def test_a_past_that_would_have_been_another_is_refused(here, no_picture, settings, reason):
    assert st3_train(*TINY, *STEADY, *settings, "run_dir=x").code == 0
    before = (here / "x" / "config.yaml").read_text(), (here / "x" / "summary.json").read_text()
    said = refused("run_dir=x", "epochs=5")
    assert said == (
        f"epochs=5 cannot lengthen run_dir=x, which has 3: {reason}. Start a new run from it with model.weights=x"
    )
    assert ((here / "x" / "config.yaml").read_text(), (here / "x" / "summary.json").read_text()) == before


def test_a_run_directory_alone_is_the_whole_command(here, no_picture, monkeypatch):
    typed = *TINY, "method=rigl", "method.every=2st", "optimizer=adamw", "model=resnet32", "seed=3"
    st3_train(*typed, "run_dir=whole")
    interrupted = RunRecorder.checkpoint

    def after_an_epoch(self, state, content):
        interrupted(self, state, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "checkpoint", after_an_epoch)
    assert st3_train(*typed, "run_dir=x").code == 130
    monkeypatch.setattr(RunRecorder, "checkpoint", interrupted)
    assert st3_train("run_dir=x", "dry_run=true").line("seed") == "3"
    assert "seed=3, not 4" in refused("run_dir=x", "seed=4")
    assert "epochs=3, not 2" in refused("run_dir=x", "epochs=2")
    assert st3_train("run_dir=x").code == 0
    assert_same(load_file(here / "x" / "model.safetensors"), load_file(here / "whole" / "model.safetensors"))
    assert "batch_size=32, not 128" in refused("run_dir=x", "method=rigl")  # an option of a group: all is as typed
