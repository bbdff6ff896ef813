"""The real command: in this process where only its words matter, as a process of its own where that matters."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from hydra.errors import MissingConfigException
from PIL import Image
from safetensors.torch import load_file

from st3.data import build_data
from st3.models import build_model
from st3.train import config_path, in_one_line, main

TINY = [
    "dataset=fake",
    "dataset.image_size=8",
    "dataset.train_images=96",
    "dataset.test_images=40",
    "dataset.classes=7",
    "batch_size=32",
    "epochs=3",
    "log_every=2",
]


def st3_train(arguments, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `st3-train ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["st3-train", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("epoch=3", "did you mean epochs?"),
        ("+typo=1", "typo is not a setting"),
        ("+optimizer.momentun=1", "did you mean optimizer.momentum"),
        ("sparsity=1.0", "sparsity=1 lies outside [0, 1)"),
        ("sparsity=-0.1", "sparsity=-0.1 lies outside"),
        ("sparsity=abc", "sparsity: Value 'abc'"),
        ("schedule.start=60%", "schedule.end=50% (step 155) comes before schedule.start=60% (step 186)"),
        ("schedule.end=99ep", "schedule.end=99ep"),
        ("schedule.end=soon", "write 5ep (epochs)"),
        ("batch_size=9000", "batch_size=9000 is larger than the 8000 training images"),
        ("dataset.classes=12", "set dataset.classes=10"),
        ("dataset.channels=3", "dataset.mean"),
        ("dataset=folder", "dataset.root=DIR is needed"),
        ("dataset=folder dataset.root=nowhere", "dataset.root=nowhere has no train/ folder"),
        ("dataset=cifar10 dataset.root=nowhere dataset.download=false", "dataset.root=nowhere"),
        ("precision=fp16 device=cpu", "precision=fp16 needs a CUDA device"),
        ("device=tpu", "device=tpu is not known"),
        (
            "dataset=imagenet dataset.decode=gpu device=cpu dry_run=true",
            "dataset.decode=gpu needs a CUDA device, not cpu",
        ),
        ("dataset=cifar10 dataset.cache=DIR dry_run=true", "dataset.cache=DIR has no effect with cifar10"),
        ("model=resnet5O", "did you mean resnet56, resnet50"),
        ("model.name=resnet5O", "did you mean resnet56, resnet50"),
        ("model=densenet121", "write model.name=densenet121"),
        ("model.dropout=0.5", "model.dropout has no effect on resnet20"),
        ("model.name=inception_v3", "choose another model.name"),
        ("method=st4", "did you mean str, st3, set?"),
        ("method=dense method.shrink=hard", "has no effect with method.name=dense"),
        ("optimizer.nesterov=true optimizer.momentum=0 dry_run=true", "optimizer: Nesterov"),
        ("method.include=[foo*]", "method.include: no Conv2d or Linear layer is named like 'foo*'"),
        ("optimizer=adamw optimizer.momentum=0.9", "has no effect with optimizer.name=adamw"),
        ("recipe=cifar10", "recipe=cifar10 does not exist"),
        (
            "recipe=cifar10_resnet20/rigle",
            "recipe=cifar10_resnet20/rigle does not exist: did you mean cifar10_resnet20/rigl",
        ),
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm has no effect on a single run: add -m"),
        ("sparsity==1", "Error parsing override"),
        ("run_dir=${nothing}", "nothing"),
        ("model=null", "model"),
        ("-m sparsity=0.5,0.9 typo=1", "typo is not a setting"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(arguments, says, here, monkeypatch, capsys):
    code, _, err = st3_train(arguments.split(), monkeypatch, capsys)
    assert code == 2
    assert err.startswith("st3-train: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == []


def test_a_corrupt_image_is_named(here, monkeypatch, capsys):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = here / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    broken = here / "data" / "train" / "dog" / "2.png"
    broken.write_bytes(b"not an image")
    arguments = (
        "dataset=folder dataset.root=data dataset.image_size=8 dataset.augment=crop dataset.workers=0 batch_size=4"
    )
    code, _, err = st3_train(arguments.split(), monkeypatch, capsys)
    assert code == 2
    assert str(Path("data", "train", "dog", "2.png")) in err
    assert files_below(here) == {name for name in files_below(here) if name.startswith("data")}


# What it says -------------------------------------------------------------------------------------------------------


def test_dry_run_says_everything_and_writes_nothing(here, monkeypatch, capsys):
    code, out, _ = st3_train(["recipe=imagenet_resnet50", "dry_run=true"], monkeypatch, capsys)
    assert code == 0
    assert list(here.iterdir()) == []
    assert "25,502,912 prunable weights, 4,089,184,256 MACs dense" in out
    assert "54 of 54 Conv and Linear layers" in out
    assert "250,200 optimizer steps: 100 epochs of 2,502, batch 512" in out
    assert "0 up to step 12,510 (epoch 5)" in out
    assert "at step 125,100 (epoch 50)" in out
    assert "warm-up over 12,510 steps" in out
    assert "label smoothing 0.1" in out


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


# Whole runs ---------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(here, monkeypatch, capsys):
    code, out, _ = st3_train([*TINY, "sparsity=0.8", "run_dir=run"], monkeypatch, capsys)
    assert code == 0
    run = here / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] is True
    assert summary["sparsity_target"] == 0.8
    assert abs(summary["zeros"] - 0.8 * summary["prunable"]) <= 1
    assert (summary["epochs"], summary["steps"]) == (3, 9)
    assert (summary["method"], summary["model"], summary["dataset"], summary["seed"]) == ("st3", "resnet20", "fake", 0)
    assert summary["macs"] < summary["macs_dense"]
    files = files_below(run)
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert files - events == {
        "best.pt",
        "config.yaml",
        "environment.yaml",
        "last.pt",
        "layers.csv",
        "metrics.csv",
        "model.safetensors",
        "overrides.yaml",
        "run.png",
        "summary.json",
    }
    assert f"{summary['zeros']:,} of {summary['prunable']:,} weights are zero" in out

    # The file is the network: as many zeros, and the accuracy that the summary gives.
    network = build_model("resnet20", classes=7, image_size=8)
    network.load_state_dict(load_file(run / "model.safetensors"))
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum((w == 0).sum().item() for w in weights) == summary["zeros"]
    data = build_data(
        "fake", root=None, classes=7, channels=3, image_size=8, mean=[0.5] * 3, std=[0.25] * 3, augment="none",
        val_images=0, train_images=96, test_images=40, workers=0, download=False, batch_size=32, seed=0, device="cpu",
    )  # fmt: skip
    with torch.no_grad():
        hits = sum((network.eval()(x).argmax(1) == y).sum().item() for x, y in data.test.epoch(0))
    assert 100 * hits / 40 == pytest.approx(summary["top1"])

    # Asked again, it says so and changes nothing; asked for something else, it refuses.
    before = {name: (run / name).stat().st_mtime_ns for name in files}
    code, out, _ = st3_train([*TINY, "sparsity=0.8", "run_dir=run"], monkeypatch, capsys)
    assert code == 0
    assert "finished" in out
    assert before == {name: (run / name).stat().st_mtime_ns for name in files_below(run)}
    code, _, err = st3_train([*TINY, "sparsity=0.7", "run_dir=run"], monkeypatch, capsys)
    assert code == 2
    assert "sparsity=0.8, not 0.7" in err


def test_the_network_loads_into_the_untouched_torchvision_model(here, monkeypatch, capsys):
    arguments = [*TINY, "model=resnet18", "dataset.image_size=72", "epochs=1", "batch_size=48", "run_dir=run"]
    assert st3_train(arguments, monkeypatch, capsys)[0] == 0
    model = torchvision.models.resnet18(num_classes=7)
    model.load_state_dict(load_file(here / "run" / "model.safetensors"))
    summary = json.loads((here / "run" / "summary.json").read_text())
    layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum((w == 0).sum().item() for w in layers) == summary["zeros"]


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cifar10_resnet20", "dataset.image_size=32 dataset.val_images=4"),
        ("cifar10_vgg16", "dataset.image_size=32 dataset.val_images=4"),
        ("cifar100_wrn34_2", "dataset.image_size=32 dataset.val_images=4"),
        ("imagenet_resnet50", "dataset.image_size=96 dataset.augment=none"),
        ("imagenet_mobilenet_v1", "dataset.image_size=96 dataset.augment=none"),
    ],
)
def test_every_recipe_takes_two_steps(recipe, changes, here, monkeypatch, capsys):
    facts = f"dataset.train_images={12 if 'cifar' in recipe else 8} dataset.test_images=4 dataset.classes=10"
    arguments = f"recipe={recipe} dataset=fake {facts} {changes} batch_size=4 epochs=1 run_dir=run"
    code, _, err = st3_train(arguments.split(), monkeypatch, capsys)
    assert (code, err) == (0, "")
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert abs(summary["zeros"] - summary["sparsity_target"] * summary["prunable"]) <= 1
    assert ("val_top1" in summary) == ("cifar" in recipe)


@pytest.mark.parametrize(
    "options",
    ["method=st3_sigma ema=0.9", "method.target=flops optimizer=adamw", "schedule=constant lr_schedule=one_cycle",
     "accumulate=4 precision=bf16", "method.shrink=hard method.rescale=false method.gradient=masked", "method=dense"],
)  # fmt: skip
def test_options_work_together(options, here, monkeypatch, capsys):
    code, _, err = st3_train([*TINY, *options.split(), "sparsity=0.9", "run_dir=run"], monkeypatch, capsys)
    assert (code, err) == (0, "")
    summary = json.loads((here / "run" / "summary.json").read_text())
    if "flops" in options:
        assert summary["macs"] / summary["macs_dense"] == pytest.approx(0.1, abs=1e-4)
    elif options == "method=dense":
        assert (summary["zeros"], summary["sparsity_target"]) == (0, 0)
        assert summary["macs"] == summary["macs_dense"]
    else:
        assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1


def test_a_sweep_makes_a_folder_for_each_job_and_outlives_a_broken_one(here, monkeypatch, capsys):
    code, _, err = st3_train(["-m", *TINY, "epochs=1", "sparsity=0.5,1.5,0.8"], monkeypatch, capsys)
    assert code == 2
    assert err.count("st3-train: error: sparsity=1.5") == 1
    summaries = [json.loads(path.read_text()) for path in here.rglob("summary.json")]
    assert sorted(summary["sparsity_target"] for summary in summaries) == [0.5, 0.8]
    assert {path.parts[0] for path in (p.relative_to(here) for p in here.rglob("*"))} == {"outputs"}


def test_jobs_of_a_sweep_equal_single_runs(here, monkeypatch, capsys):
    st3_train(["-m", *TINY, "seed=0,1", "run_dir='sweep/${seed}'"], monkeypatch, capsys)
    st3_train([*TINY, "seed=1", "run_dir=alone"], monkeypatch, capsys)
    alone, second, first = (load_file(here / name / "model.safetensors") for name in ("alone", "sweep/1", "sweep/0"))
    assert all(torch.equal(alone[name], second[name]) for name in alone)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


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
    )
    run = sweep / "1-resnet20-fake-st3-0.8-s0"
    assert {path.name for path in sweep.iterdir()} == {"submitit", run.name}
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["finished"], summary["sparsity_target"]) == (True, 0.8)
    said = [path.read_text() for path in sorted((sweep / "submitit").glob("*.out"))]
    assert sum("[1] dataset=fake " in text and "weights are zero" in text for text in said) == 1


def test_a_launcher_that_is_not_installed_is_named():
    error = MissingConfigException("…", missing_cfg_file="hydra/launcher/submitit_slurm", options=["basic"])
    assert in_one_line(error) == ("hydra/launcher=submitit_slurm is not installed: pip install hydra-submitit-launcher")


@pytest.mark.parametrize("options", [[], ["ema=0.9", "accumulate=2"]])
def test_a_killed_run_continues_to_the_same_weights_bit_for_bit(options, here):
    # Processes of their own for all: the number of threads decides the order in which sums are rounded.
    command = [sys.executable, "-m", "st3.train", *TINY, *options, "epochs=6", "dataset.train_images=320"]
    subprocess.run([*command, "run_dir=whole"], stdout=subprocess.DEVNULL, check=True)

    command.append("run_dir=killed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (here / "killed" / "last.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_after = torch.load(here / "killed" / "last.pt", weights_only=True)["epoch"]
    assert killed_after < 6, "the run ended before it could be killed"

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"continuing killed after epoch {killed_after}" in done.stdout
    expected, found = (load_file(here / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [
        [line.split(",")[1] for line in (here / name / "metrics.csv").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert steps[0] == steps[1]


@pytest.mark.skipif(shutil.which("st3-train") is None, reason="the package is not installed here")
def test_the_installed_command_and_the_module_are_the_same_entry(here):
    arguments = ["recipe=cifar10_resnet20", "sparsity=0.95", "dry_run=true"]
    answers = [
        subprocess.run([*entry, *arguments], capture_output=True, text=True, check=True).stdout
        for entry in (["st3-train"], [sys.executable, "-m", "st3.train"])
    ]
    assert answers[0] == answers[1]
    assert "to 95.00% of the weights at step 28,080 (epoch 80)" in answers[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_run_is_exact_in_every_precision(precision, here, monkeypatch, capsys):
    arguments = [*TINY, f"precision={precision}", "device=cuda", "run_dir=run"]
    assert st3_train(arguments, monkeypatch, capsys)[0] == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1


# Where the time goes, and how steps are executed ----------------------------------------------------------------------


def test_the_summary_says_where_time_and_memory_went(here, monkeypatch, capsys):
    code, out, _ = st3_train([*TINY, "run_dir=run"], monkeypatch, capsys)
    assert code == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["processes"] == 1
    assert summary["warmup_seconds"] > 0
    assert summary["data_seconds"] >= 0
    assert summary["warmup_seconds"] + summary["data_seconds"] <= summary["seconds"]
    assert 50e6 < summary["peak_memory_bytes"] < 1e12
    warmup, data = (f"{summary[name]:.1f} s" for name in ("warmup_seconds", "data_seconds"))
    assert f"warm-up {warmup}, waiting for data {data}" in out
    assert f"{summary['peak_memory_bytes'] / 1e9:.2f} GB at the peak" in out
    assert "processes" not in out


def test_capture_is_refused_where_there_is_no_cuda_device(here, monkeypatch, capsys):
    code, _, err = st3_train([*TINY, "device=cpu", "capture=on", "run_dir=run"], monkeypatch, capsys)
    assert code == 2
    assert err == "st3-train: error: capture=on is not possible (CUDA graphs need a CUDA device): use capture=auto\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "compiled"),
    [("", False), ("compile=on capture=off", True), ("compile=on", True), ("compile=off capture=auto", False)],
)
def test_a_dry_run_says_how_steps_would_be_executed(options, compiled, here, monkeypatch, capsys):
    arguments = [*TINY, "device=cpu", *options.split(), "dry_run=true"]
    code, out, err = st3_train(arguments, monkeypatch, capsys)
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.startswith("precision ")]
    assert line == f"precision  fp32 on cpu{', compiled' if compiled else ''}"


@pytest.mark.parametrize("setting", ["compile", "capture"])
def test_an_unknown_way_of_execution_is_refused(setting, here, monkeypatch, capsys):
    code, _, err = st3_train([*TINY, f"{setting}=maybe"], monkeypatch, capsys)
    assert code == 2
    assert err.startswith(f"st3-train: error: {setting}=maybe")
    assert err.count("\n") == 1
