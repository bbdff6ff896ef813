"""Everything that only a GPU can show, in one command: is it right, how fast is it, beside what it was designed for.

    python scripts/gpu_proof.py --out DIR [--root CIFAR10] [--only tests,projection] [--list] [--quick]

Steps run one after the other, the most telling first, each in a process of its own with a time limit; together they end
within 28 minutes. After each of them DIR/proof.md is written anew: a table of figures beside their aims, for
docs/benchmarks.md. DIR holds what the steps print and write, too. A step whose figures are in DIR is not done again, so
that the same command goes on after an interruption. `--root` has CIFAR-10 as image files, root/train/CLASS/FILE and
root/test/CLASS/FILE; without it the images are random, and accuracies mean nothing.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import st3
from st3.training.environment import environment
from st3.training.machine import pick_machine

ROOT = Path(__file__).parents[1]
Figures = dict[str, float]


@dataclass(frozen=True)
class Aim:
    """What a figure was designed to be."""

    shown: str
    """How a value is written, as a format."""
    aim: float | None = None
    bound: float | None = None
    """What it must at least (or at most) be."""
    more_is_better: bool = False

    def verdict(self, value: float) -> str:
        if self.aim is None or self.bound is None:
            return ""
        sign = -1 if self.more_is_better else 1
        if sign * value <= sign * self.aim:
            return "as aimed"
        return "within" if sign * value <= sign * self.bound else "MISSED"


AIMS = {
    "tests passed": Aim("{:.0f}"),
    "tests failed": Aim("{:.0f}", 0, 0),
    "threshold and projection of 25.5 M weights, ms": Aim("{:.3f}", 0.3, 1.0),
    "threshold and projection of 0.3 M weights, replayed, ms": Aim("{:.4f}", 0.015, 0.03),
    "ResNet-20, batch 128: captured ST-3 step, ms": Aim("{:.3f}", 0.8, 1.5),
    "over the captured dense step": Aim("{:.3f}", 1.02, 1.05),
    "compiled and captured ST-3 step, ms": Aim("{:.3f}"),
    "over the compiled and captured dense step": Aim("{:.3f}", 1.02, 1.05),
    "recipe=cifar10_resnet20, dense: s after warm-up": Aim("{:.0f}", 50, 95),
    "recipe=cifar10_resnet20, 95 %: s after warm-up": Aim("{:.0f}", 50, 95),
    "recipe=cifar10_resnet20, 98 %: s after warm-up": Aim("{:.0f}", 50, 95),
    "warm-up of these, at most, s": Aim("{:.0f}", 20, 45),
    "top-1 of the dense one, %": Aim("{:.2f}"),
    "top-1 at 95 %, %": Aim("{:.2f}"),
    "top-1 at 98 %, %": Aim("{:.2f}"),
    "ResNet-50, 224, batch 256, eager: ST-3 step over dense step": Aim("{:.3f}", 1.01, 1.03),
    "ResNet-50, eager: images/s": Aim("{:,.0f}"),
    "memory over dense, in fp32 weights": Aim("{:.2f}", 1.5, 2.2),
    "ResNet-50, compiled: ST-3 step over dense step": Aim("{:.3f}", 1.01, 1.03),
    "ResNet-50, compiled: images/s": Aim("{:,.0f}", 5600, 5200, more_is_better=True),
}
"""In the order of the table."""


@dataclass(frozen=True)
class Step:
    """Something to run, and what to read from it."""

    what: str
    limit: int
    """Seconds for all of its commands."""
    commands: Callable[[Path, str | None, bool], list[list[str]]]
    """For the folder of the step, the root of CIFAR-10 and whether sizes are to be tiny: arguments of Python."""
    figures: Callable[[Path], Figures]
    """From the folder."""


def tests(folder: Path, root: str | None, quick: bool) -> list[list[str]]:
    chosen = ["tests/training/test_loop.py"] if quick else ["tests"]
    gpu = ["-m", "pytest", "-q", "-m", "gpu", *chosen, f"--junitxml={folder.resolve() / 'gpu.xml'}"]
    if quick:
        return [gpu]
    kernels = ["-m", "pytest", "-q", "tests/sparsify/test_kernels.py", f"--junitxml={folder.resolve() / 'kernels.xml'}"]
    return [gpu, kernels]


def of_tests(folder: Path) -> Figures:
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for file in folder.glob("*.xml"):
        for name in counts:
            counts[name] += int(re.search(rf'{name}="(\d+)"', file.read_text(encoding="utf-8"))[1])  # type: ignore[index]
    failed = counts["failures"] + counts["errors"]
    return {"tests passed": counts["tests"] - failed - counts["skipped"], "tests failed": failed}


def benchmark(*arguments: str) -> Callable[[Path, str | None, bool], list[list[str]]]:
    def commands(folder: Path, root: str | None, quick: bool) -> list[list[str]]:
        words = [arguments[0], "--quick", "--device", "cpu", "--threads", "1"] if quick else arguments
        return [["scripts/benchmark.py", *words, "--out", str(folder)]]

    return commands


def results(folder: Path) -> list[dict[str, Any]]:
    """What a benchmark could time."""
    sections = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["sections"]
    return [result for section in sections for result in section["results"] if "seconds" in result]


def of_projection(folder: Path) -> Figures:
    found: Figures = {}
    for each in results(folder):
        if each.get("task") == "projection":
            if each["contender"] == "st3" and each["weights"] > 25e6:
                found["threshold and projection of 25.5 M weights, ms"] = 1e3 * each["seconds"]["median"]
            if each["contender"] == "st3, replayed" and each["weights"] < 1e6:
                found["threshold and projection of 0.3 M weights, replayed, ms"] = 1e3 * each["seconds"]["median"]
    return found


def of_steps(mode: str, ratio: str, milliseconds: str = "", rate: str = "") -> Callable[[Path], Figures]:
    """What the figures of ST-3's step in a mode are called."""

    def figures(folder: Path) -> Figures:
        found: Figures = {}
        for each in results(folder):
            if (each["method"], each["mode"]) == ("st3", mode):
                found |= {milliseconds: 1e3 * each["seconds"]["median"], rate: each["images_per_second"]}
                found |= {ratio: each["to_dense"]["median"]} if "to_dense" in each else {}
                found |= {MEMORY: each["extra_in_weights"]} if rate and "extra_in_weights" in each else {}
        return {name: value for name, value in found.items() if name}

    return figures


MEMORY = "memory over dense, in fp32 weights"
RUNS = {"dense": ["method=dense"], "95": ["sparsity=0.95"], "98": ["sparsity=0.98"]}


def recipe(folder: Path, root: str | None, quick: bool) -> list[list[str]]:
    data = ["dataset=fake", "dataset.train_images=50000", "dataset.test_images=10000", "dataset.augment=crop_flip"]
    if root:
        data = ["dataset=cifar10_folder", f"dataset.root={root}"]
    if quick:
        data = [
            "dataset=fake",
            "dataset.val_images=0",
            "dataset.train_images=64",
            "batch_size=32",
            "device=cpu",
            "epochs=2",
        ]
        data += ["dataset.image_size=8", "dataset.test_images=16", "lr_schedule.milestones=[1ep]"]
    base = ["-m", "st3.train", "recipe=cifar10_resnet20", *data]
    return [[*base, *words, f"run_dir={folder / name}"] for name, words in RUNS.items()]


def of_recipe(folder: Path) -> Figures:
    found: Figures = {}
    for name in RUNS:
        with suppress(FileNotFoundError):
            summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
            if summary["finished"]:
                which, at = (name, "of the dense one") if name == "dense" else (f"{name} %", f"at {name} %")
                seconds, warm_up = summary["seconds"], summary["warmup_seconds"]
                found[f"recipe=cifar10_resnet20, {which}: s after warm-up"] = seconds - warm_up
                found[f"top-1 {at}, %"] = summary["top1"]
                most = "warm-up of these, at most, s"
                found[most] = max(warm_up, found.get(most, 0.0))
    return found


def of_resnet20(folder: Path) -> Figures:
    captured = of_steps("captured", "over the captured dense step", "ResNet-20, batch 128: captured ST-3 step, ms")
    both = "over the compiled and captured dense step", "compiled and captured ST-3 step, ms"
    return captured(folder) | of_steps("compiled+captured", *both)(folder)


RESNET20 = ["--methods", "st3,st3_sigma,rigl,naive", "--modes", "eager,captured,compiled+captured"]
RESNET50 = ["--model", "resnet50", "--image-size", "224", "--batch", "256", "--classes", "1000", "--methods", "st3"]
EAGER = "ResNet-50, 224, batch 256, eager: ST-3 step over dense step"
COMPILED = "ResNet-50, compiled: ST-3 step over dense step"
STEPS = {
    "tests": Step("pytest -m gpu, and the kernel tests", 300, tests, of_tests),
    "projection": Step(
        "threshold and projection alone", 90, benchmark("projection", "--sizes", "0.3e6,25.5e6"), of_projection
    ),
    "resnet20": Step("steps of ResNet-20, methods and modes", 300, benchmark("step", *RESNET20), of_resnet20),
    "recipe": Step("160 epochs of CIFAR-10: dense, ST-3 at 95 and 98 %", 480, recipe, of_recipe),
    "resnet50": Step(
        "steps of ResNet-50 as they are",
        180,
        benchmark("step", *RESNET50, "--modes", "eager"),
        of_steps("eager", EAGER, rate="ResNet-50, eager: images/s"),
    ),
    "resnet50_compiled": Step(
        "steps of ResNet-50, compiled",
        330,
        benchmark("step", *RESNET50, "--modes", "compiled"),
        of_steps("compiled", COMPILED, rate="ResNet-50, compiled: images/s"),
    ),
}
"""Their limits add up to 28 minutes."""


def do(name: str, out: Path, root: str | None, quick: bool) -> str:
    """Run a step and note its figures; what there is to say of it."""
    step, folder, begin = STEPS[name], out / name, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    trouble = []
    with open(folder / "printed.txt", "w", encoding="utf-8") as printed:
        for command in step.commands(folder, root, quick):
            left = step.limit - (time.monotonic() - begin)
            code = run([sys.executable, *command], printed, left) if left > 0 else "no time was left"
            if code:
                trouble.append(f"`{shlex.join(command)[:100]}`: {code}, see {folder / 'printed.txt'}")
            try:  # after each command: what comes next may not end
                found = step.figures(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                found = {}
                trouble.append(f"no figures ({type(error).__name__}: {error})")
            note(out, name, found, trouble, time.monotonic() - begin, quick)
    return "; ".join(trouble) or "done"


def run(command: Sequence[str], printed: Any, limit: float) -> str:
    """What went wrong with a command, if something did. It and its children are killed at the limit."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"ended at its limit of {limit:.0f} s"
    return f"exit code {code}" if code else ""


def note(out: Path, name: str, figures: Figures, trouble: Sequence[str], seconds: float, quick: bool) -> None:
    """Keep the figures of a step, and write the table of all."""
    content = {"figures": figures, "trouble": list(trouble), "seconds": round(seconds, 1), "quick": quick}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "proof.md").write_text(table(out), encoding="utf-8")


def table(out: Path) -> str:
    """Figures beside their aims, in Markdown."""
    notes = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in noted(out).items()}
    found = {key: value for each in notes.values() for key, value in each["figures"].items()}
    tiny = (
        ["**Tiny sizes: no figure here means anything.**", ""] if any(each["quick"] for each in notes.values()) else []
    )
    lines = [facts(), "", *tiny, "| | measured | aim | at most / at least | |", "|---|---:|---:|---:|---|"]
    for key, aim in AIMS.items():
        value = found.get(key)
        figures = ["–" if each is None else aim.shown.format(each) for each in (value, aim.aim, aim.bound)]
        lines.append(f"| {' | '.join([key, *figures, 'not measured' if value is None else aim.verdict(value)])} |")
    lines.append("")
    for name, each in notes.items():
        lines.append(f"- {name}: {each['seconds']:.0f} s; {'; '.join(each['trouble']) or 'nothing went wrong'}")
    return "\n".join(lines) + "\n"


def noted(out: Path) -> dict[str, Path]:
    """The steps that have been done, and where their figures are."""
    return {name: out / f"{name}.json" for name in STEPS if (out / f"{name}.json").exists()}


def facts() -> str:
    """The device, the versions, the commit, the date."""
    known = environment(pick_machine("auto", "auto"), st3.__version__)
    commit = f"commit {known['git']['commit'][:7]}" if known["git"] else "commit unknown"
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", "python", "cuda") if known[name])
    return f"{known['device']}; {versions}; {commit}; {datetime.now(UTC).date()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where everything is written")
    parser.add_argument("--root", help="CIFAR-10 as image files")
    parser.add_argument("--only", metavar="STEP,…", help="some steps")
    parser.add_argument("--list", action="store_true", help="say what would be done")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU: shows that it works")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(STEPS)
    if unknown := [name for name in chosen if name not in STEPS]:
        parser.error(f"{unknown[0]} is none of {', '.join(STEPS)}")
    if options.list:
        for name in chosen:
            print(f"{name:<18} at most {STEPS[name].limit:>3} s: {STEPS[name].what}")
        return
    if not options.out:
        parser.error("say with --out where everything is to be written")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        said = "is there" if name in noted(options.out) else do(name, options.out, options.root, options.quick)
        print(f"{name}: {said}", flush=True)
    print(table(options.out))


if __name__ == "__main__":
    main()
