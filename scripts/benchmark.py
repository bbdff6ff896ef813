"""What sparse training costs: whole steps, the projection alone, whole epochs, each beside what it is compared with.

    python scripts/benchmark.py step [--model resnet20] [--methods all|st3,rigl,naive] [--modes eager,compiled]
    python scripts/benchmark.py projection [--sizes 0.3e6,1e6,3e6,10e6,25.5e6,100e6]
    python scripts/benchmark.py epoch [--methods st3,rigl] [--root DIR]
    python scripts/benchmark.py all [--out DIR] [--time-limit SECONDS]

All contenders of a table run in one process and take turns: each round times every one of them, in an order that
rotates by round, so that whatever else the machine does hits all alike. Ratios are taken within a round. The step runs
at its steady state, the full sparsity; where a method updates its masks now and then, such steps are timed, too, and
counted as often as they occur. What a contender has computed is checked before its time is reported; one that cannot
be timed is named below the table, with the reason.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.epoch import epoch_table
from benchmarks.harness import SPARSITY, Section
from benchmarks.projection import projection_table
from benchmarks.step import step_table

import st3
from st3.errors import UserError
from st3.sparsify.kernels import triton
from st3.training.environment import environment, processor
from st3.training.machine import Machine, pick_machine

TABLES = {"step": step_table, "projection": projection_table, "epoch": epoch_table}
"""Each yields its section as often as there is more in it."""

# Sizes where the command line is silent: for tables, on a CPU and on a GPU, and to show that everything works.
CPU: dict[str, Any] = {
    "model": "resnet20", "batch": 128, "image_size": 32, "classes": 10, "modes": "eager,captured", "steps": 5,
    "methods": {"step": "all", "epoch": "st3"}, "rounds": {"step": 30, "projection": 7, "epoch": 3},
    "sizes": "0.3e6,1e6,3e6,10e6,25.5e6", "train_images": 5_760, "val_images": 640, "test_images": 1_280,
    "root": None, "time_limit": None, "until": math.inf, "warm_up": False, "sparsity": SPARSITY,
}  # fmt: skip
CUDA = CPU | {
    "modes": "eager,compiled,captured,compiled+captured", "steps": 10,
    "rounds": {"step": 15, "projection": 15, "epoch": 10}, "sizes": CPU["sizes"] + ",100e6",
    "train_images": 50_000, "val_images": 5_000, "test_images": 10_000,
}  # fmt: skip
LARGE = {
    "model": "resnet50", "batch": 256, "image_size": 224, "classes": 1000, "modes": "eager,compiled",
    "methods": "st3,st3_sigma,naive",
}  # fmt: skip
QUICK = CPU | {
    "batch": 8, "image_size": 16, "methods": {"step": "st3,st3_sigma,rigl,naive,pytorch", "epoch": "st3"}, "rounds": 2,
    "steps": 1, "sizes": "2e4,2e5", "train_images": 64, "val_images": 16, "test_images": 32,
}  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    common.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    common.add_argument("--threads", type=int, help="CPU threads")
    common.add_argument("--rounds", type=int, help="how often every contender is timed")
    common.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each table: no round begins after it")
    common.add_argument("--out", type=Path, help="folder for benchmark.json and benchmark.md, written table by table")
    common.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works")
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", parents=[common], help="whole training steps")
    step.add_argument("--model", help="a model of configs/model/, or a name that model.name takes")
    step.add_argument(
        "--methods",
        help="besides dense: all, or names of methods; naive: ST-3 with wrapped layers; pytorch: a plain dense loop",
    )
    step.add_argument("--modes", help="all, or of eager, compiled, captured, compiled+captured")
    for name in ("batch", "image-size", "classes", "steps"):
        step.add_argument(f"--{name}", type=int)
    projection = commands.add_parser("projection", parents=[common], help="threshold and projection alone")
    projection.add_argument("--sizes", help="numbers of weights")
    epoch = commands.add_parser("epoch", parents=[common], help="whole epochs of the CIFAR-10 recipe")
    epoch.add_argument("--methods", help="besides dense: all, or names of methods")
    everything = commands.add_parser("all", parents=[common], help="all of them, at the sizes for this device")
    alone = "time each step's warm-up alone, from empty caches; compiles everything twice"
    for each in (step, everything):
        each.add_argument("--warm-up", action="store_true", help=alone)
    for each in (epoch, everything):
        each.add_argument("--root", type=Path, help="CIFAR-10 as image files, root/train/CLASS/FILE; default: random")
    return parser.parse_args(arguments)


def tables_of(args: argparse.Namespace, device: torch.device) -> list[tuple[str, argparse.Namespace]]:
    """Names of the tables to make, each with all its settings."""
    defaults = QUICK if args.quick else CUDA if device.type == "cuda" else CPU
    given = {name: value for name, value in vars(args).items() if value is not None}

    def settled(table: str, **special: Any) -> tuple[str, argparse.Namespace]:
        values = {**defaults, **special, **given}
        values = {name: value.get(table) if isinstance(value, dict) else value for name, value in values.items()}
        return table, argparse.Namespace(**values)

    if args.command != "all":
        return [settled(args.command)]
    large = [settled("step", **LARGE)] if device.type == "cuda" and not args.quick else []
    return [*large, *map(settled, TABLES)]


def describe(machine: Machine, arguments: Sequence[str]) -> dict[str, Any]:
    """With what the tables are made."""
    return {
        **environment(machine, st3.__version__),
        "triton": triton and triton.__version__,
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "command": shlex.join(["python", "scripts/benchmark.py", *arguments]),
    }


def heading(facts: dict[str, Any]) -> str:
    commit = facts["git"]["commit"][:7] if facts["git"] else "unknown"
    if facts["git"] and facts["git"]["changed_files"]:
        commit += f" and {facts['git']['changed_files']} changed files"
    device = "" if facts["device"] == facts["processor"] else f"{facts['device']}; "
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "triton", "python", "cuda") if facts[name])
    return (
        f"`{facts['command']}`\n\n{device}{facts['processor']}, {facts['cpu_threads']} threads on "
        f"{facts['cpu_cores']} cores; {versions}; commit {commit}; {facts['date']}"
    )


def write(folder: Path, facts: dict[str, Any], sections: Sequence[Section]) -> None:
    """Both files anew. Whatever ends the process leaves the ones before, or these."""
    content = {"environment": facts, "sections": [section.plain() for section in sections]}
    text = "\n\n".join([heading(facts), *(section.markdown() for section in sections)])
    for name, written in (("benchmark.json", json.dumps(content, indent=1, default=str)), ("benchmark.md", text)):
        beside = folder / f"{name}.new"
        beside.write_text(written + "\n", encoding="utf-8")
        beside.replace(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    # Networks of one class share compiled code; by default PyTorch gives up after eight variants.
    torch._dynamo.config.recompile_limit = 64
    try:
        machine = pick_machine(args.device, args.precision)
        args.precision, facts, sections = machine.precision, describe(machine, arguments), list[Section]()
        print(heading(facts), flush=True)
        for name, settings in tables_of(args, machine.device):
            settings.until = time.perf_counter() + (math.inf if args.time_limit is None else args.time_limit)
            for section in TABLES[name](settings, machine):
                if args.out:
                    write(args.out, facts, [*sections, section])
            sections.append(section)
            print(f"\n{section.markdown()}", flush=True)
    except UserError as error:
        sys.exit(f"benchmark: error: {error}")
    if any(contender.result.get("wrong") for section in sections for contender in section.contenders):
        sys.exit("benchmark: error: something wrong has been computed, as said below its table")


if __name__ == "__main__":
    main()
