"""Wrong overrides, made by rule, and what st3-train says of each: a Markdown table of counts, then all offenders.

    python scripts/reliability/overrides.py [--only optimizer,grammar] [--jobs N] [--commands N] > overrides.md

Each setting there is gets each of `VALUES`, with the smallest run there is around it; `LEGAL` says which of them it may
have. Besides, words that are no overrides, settings that contradict each other and files that are not there. Whatever
is wrong is to end within 10 seconds of the processor in one line that names it. The dry run is made here, and
that of some cases by the real command, too.
"""

import argparse
import contextlib
import io
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from st3.compose import compose_config
from st3.config import setting_names
from st3.errors import UserError
from st3.run import run
from st3.settings import hints
from st3.variants import VARIANTS

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=40", "dataset.classes=7",
    "batch_size=32", "epochs=3", "precision=fp32", "device=cpu",
]  # fmt: skip
"""Nine optimizer steps."""
SECONDS = 10
"""What an answer may take."""
KINDS = "fine", "traceback", "names no setting", "several lines", "accepted nonsense", f"longer than {SECONDS} s"


@dataclass(frozen=True)
class Case:
    """Words that are typed."""

    group: str
    """Of cases, for the table."""
    words: tuple[str, ...]
    wrong: bool
    """Whether they must be refused."""
    named: tuple[str, ...]
    """One of these must be in the message."""


# Values of settings ---------------------------------------------------------------------------------------------------

VALUES = ["nan", "inf", "-inf", "-1", "0", "2.7", "1e308", str(10**6), str(10**18), str(10**30), "", "null", "abc"]
VALUES += ["[1]", "[inf]", "[]", "[[1]]", "{a: 1}", "true"]

Legal = Callable[[Any], bool]


def number(low: float = 0, high: float = 3e38, *, without: float | None = None) -> Legal:
    """A finite one from `low` to `high`, as float32 has it."""
    return lambda value: type(value) in (int, float) and low <= value <= high and value != without


def whole(low: int, high: int = 2**63 - 1) -> Legal:
    return lambda value: type(value) in (int, float) and low <= value <= high and value == int(value)


def one_of(*choices: str) -> Legal:
    return lambda value: value in choices


def text(value: Any) -> bool:
    return type(value) in (str, int)


def flag(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1)


def duration(value: Any) -> bool:
    """A part of the training."""
    return type(value) in (int, float) and 0 <= value <= 3  # epochs


def interval(value: Any) -> bool:
    """Between repetitions; a long one means that there is none."""
    return type(value) in (int, float) and 0 < value < 1e300


def several(of: Legal, count: int | None = None) -> Legal:
    return lambda value: isinstance(value, list) and all(map(of, value)) and count in (None, len(value))


def nullable(legal: Legal) -> Legal:
    return lambda value: value is None or legal(value)


FRACTION, BELOW_ONE, SWITCH = number(0, 1), number(0, 1, without=1), one_of("auto", "on", "off", True, False)
LEGAL: dict[str, Legal] = {
    "sparsity": BELOW_ONE, "epochs": whole(1, 10**6), "batch_size": whole(1, 96), "accumulate": whole(1, 32),
    "label_smoothing": BELOW_ONE, "clip_norm": number(), "ema": BELOW_ONE, "seed": whole(0),
    "precision": one_of("auto", "fp32", "bf16"), "device": one_of("auto", "cpu"), "compile": SWITCH,
    "capture": one_of("auto", "off", False), "profile": flag, "logger": one_of("none"), "eval_every": whole(1),
    "log_every": whole(1), "checkpoint_every": one_of("0", "10min", "500st", 0), "ddp_timeout": whole(1, 10**7),
    "run_dir": nullable(text), "dry_run": flag,
    "model.name": one_of(), "model.init": one_of("default", "kaiming_normal"), "model.depth": nullable(one_of()),
    "model.width": nullable(one_of()), "model.dropout": nullable(BELOW_ONE), "model.weights": one_of(""),
    "model.bn_eps": number(0, 1),
    "dataset.name": one_of("fake"), "dataset.root": one_of(None), "dataset.classes": whole(1, 10**6),
    "dataset.channels": one_of(), "dataset.image_size": whole(1, 10_000),
    "dataset.mean": several(number(0, 1), 3), "dataset.std": several(number(1e-6, 1), 3),
    "dataset.augment": one_of("none", "crop", "crop_flip"), "dataset.val_images": whole(0, 95),
    "dataset.train_images": whole(32, 10**6), "dataset.test_images": whole(1, 10**6), "dataset.workers": whole(0, 1000),
    "dataset.download": one_of(False), "dataset.decode": one_of("cpu"), "dataset.cache": one_of(None),
    "dataset.on_error": one_of("stop"), "dataset.changed": one_of("stop", "accept"),
    "augmentation.policy": one_of("none", "randaugment", "trivialaugment"), "augmentation.operations": whole(1, 100),
    "augmentation.magnitude": whole(0, 30), "augmentation.erasing": FRACTION, "augmentation.mixup": number(),
    "augmentation.cutmix": number(),
    "method.include": one_of(), "method.exclude": several(text), "method.target": one_of("weights", "flops"),
    "method.times": nullable(one_of()), "method.min_density": number(0, 0.1), "method.allocation": one_of("global"),
    "method.every": interval, "method.until": duration, "method.regrow": FRACTION, "method.regrow_final": FRACTION,
    "method.probability_lr": number(without=0), "method.growth": one_of("gradient"), "method.drop": FRACTION,
    "method.shrink": one_of("soft"), "method.exponent": number(1, 100), "method.rescale": flag,
    "method.gradient": one_of("straight_through"), "method.theta": nullable(FRACTION),
    "method.dead_channels": one_of("straight_through"), "method.layer_sigma": flag,
    "method.cost_exponent": number(0, 10), "method.cost": one_of("macs"), "method.threshold_init": number(-3e38),
    "method.threshold_decay": nullable(number()), "method.backward": FRACTION, "method.decay": number(),
    "raw_step.alpha": number(), "raw_step.beta": number(),
    "schedule.finetune": duration, "schedule.start": duration, "schedule.end": duration,
    "schedule.power": number(0, 1000, without=0), "schedule.initial": number(0, 0.9), "schedule.period": interval,
    "schedule.last_dense": duration, "optimizer.lr": number(without=0), "optimizer.weight_decay": number(),
    "optimizer.momentum": BELOW_ONE, "optimizer.nesterov": flag, "optimizer.betas": several(BELOW_ONE, 2),
    "optimizer.eps": number(), "lr_schedule.warmup": duration, "lr_schedule.milestones": several(duration),
    "lr_schedule.gamma": number(0, 10), "lr_schedule.end": duration, "lr_schedule.final": FRACTION,
    "lr_schedule.initial": FRACTION,
}  # fmt: skip
"""Of each setting: which of `VALUES` it may have in a tiny run. A legal value may be refused for what it is beside."""


def of_settings() -> Iterator[Case]:
    """Each setting with each value, in the first variant that has it."""
    parser = OverridesParser.create()
    for name, context in all_settings():
        kept = [word for word in (*TINY, *context) if not word.startswith(f"{name}=")]
        for value in VALUES:
            word = f"{name}={value}"
            legal = LEGAL[name](parser.parse_override(word).value())
            yield Case(name.rpartition(".")[0] or "common", (*kept, word), not legal, (name,))


def all_settings() -> Iterator[tuple[str, list[str]]]:
    """The dotted name of each, and what chooses a variant that has it."""
    for name in setting_names():
        wide = name in ("model.depth", "model.width", "model.dropout")
        policy = name in ("augmentation.operations", "augmentation.magnitude")
        yield name, ["model=wide_resnet"] * wide + ["augmentation.policy=randaugment"] * policy
    seen = set()
    for group, variants in VARIANTS.items():
        for cls in variants.values():
            for key in hints(cls):
                owner = next(each for each in reversed(cls.__mro__) if key in getattr(each, "__annotations__", {}))
                if (group, key, owner) not in seen:
                    seen.add((group, key, owner))
                    follows = {"schedule": ["method=acdc"]} if cls.name == "alternating" else {}
                    yield f"{group}.{key}", [*follows.get(group, []), f"{group}={cls.option or cls.name}"]


# Other mistakes -------------------------------------------------------------------------------------------------------


def of_names() -> Iterator[Case]:
    """Settings, groups and options that there are not."""
    for name, _ in all_settings():
        wrong = f"{name[:-1]}_" if len(name) > 4 else f"{name}x"
        for word in (f"{wrong}=1", f"+{wrong}=1", f"++{wrong}=1"):
            yield Case("names", (*TINY, word), True, (wrong,))
        if "." in name:
            yield Case("names", (*TINY, f"~{name}"), True, (name, name.partition(".")[0]))
    for group in ("model", "dataset", "augmentation", *VARIANTS):
        for word in (
            f"~{group}",
            f"{group}=null",
            f"{group}=nothing",
            f"{group}=",
            f"{group}=[a,b]",
            f"{group}={{a: 1}}",
        ):
            yield Case("groups", (*TINY, word), True, (group,))
        for word in (
            f"+{group}=nothing",
            f"{group}@other=nothing",
            f"+{group}.typo=1",
            f"{group}/x=1",
            f"{group}=../x",
        ):
            yield Case("groups", (*TINY, word), True, (group,))
        yield Case("groups", (*TINY, f"+{group}={{typo: 1}}"), True, (group,))
    for word in ("recipe=nothing", "recipe=../recipe", "typo=cubic", "typo/x=cubic", "+typo=1", "~sparsity", "~typo"):
        yield Case("names", (*TINY, word), True, re.findall(r"\w+", word)[:1])
    for word in ("hydra.nothing=1", "hydra=abc", "hydra/launcher=nothing"):
        yield Case("names", (*TINY, word), True, ("hydra",))


GRAMMAR = [
    "=", "==", "a==b", "=0.5", "sparsity", "sparsity=(", "sparsity=[0.5", "sparsity=]", "sparsity={", "sparsity='0.5",
    'sparsity="', "sparsity=0.5,0.9", "sparsity=range(1,3)", "sparsity=choice(0.5,0.9)", "sparsity=glob(*)",
    "sparsity=${oc.env:NOTHING_SUCH}", "sparsity=${nothing}", "sparsity=${sparsity}", "sparsity=${",
    "sparsity=${a:b:c}", "sparsity=${oc.env:HOME}", "sparsity=???", "sparsity=a b", "sparsity=a:b", "sparsity=%",
    "sparsity=\\", "sparsity=#", "sparsity=0,5", "sparsity=0.5;epochs=2", "sparsity==0.5", "sparsity:0.5",
    "sparsity =0.5", "sparsity=\u221e", "sparsity=\u0660.\u0665", "spärsity=0.5", "sparsity=\n0.5\nx",
    "sparsity=0.5\n", "sparsity=" + "9" * 100_000, "sparsity=" + "x" * 100_000, "x" * 100_000 + "=1",
    "sparsity=" + "[" * 500 + "]" * 500, "run_dir=${nothing}", "run_dir=${oc.env:NOTHING_SUCH}",
    "run_dir=${run_dir}", "--nothing", "-x", "sparsity=int(abc)", "sparsity=float([])", "sparsity=sort(1,a)",
    "sparsity=shuffle(1)", "sparsity=interval(0,1)", "sparsity=nothing(1)", "model=resnet20,resnet32",
    "dataset=fake,mnist", "optimizer.betas=[0.9", "method.include=['*]", "a.b.c.d=1", "..=1", ".sparsity=0.5",
    "@=1", "sparsity@x=1", "\u202esparsity=1", "sparsity=\U0001f600", "+=1", "++=1", "~=1", "~", "+", "", " ",
    "sparsity=\t",
]  # fmt: skip
"""Each of them is wrong."""

CONTRADICTIONS = {
    "optimizer.nesterov=true optimizer.momentum=0": "optimizer.momentum optimizer.nesterov",
    "ema=0.5 schedule.finetune=10%": "ema",
    "accumulate=7": "accumulate",
    "batch_size=97": "batch_size",
    "method.target=latency": "method.target",
    "method.cost=time": "method.cost",
    "method.times=x.json": "method.times",
    "schedule.start=60%": "schedule.start",
    "lr_schedule.warmup=100%": "lr_schedule.warmup",
    "lr_schedule.end=1%": "lr_schedule.end",
    "lr_schedule=multistep lr_schedule.milestones=[75%,50%]": "lr_schedule.milestones",
    "lr_schedule=multistep lr_schedule.milestones=[150%]": "lr_schedule.milestones",
    "schedule.initial=0.95": "schedule.initial",
    "method=rigl schedule=cubic": "schedule",
    "method=st3 method.drop=0.1": "method.drop",
    "method.shrink=hard method.exponent=2": "method.exponent",
    "method.rescale=false method.gradient=rescaled": "method.gradient",
    "method=gmp_uniform method.min_density=0.1": "method.min_density",
    "method.min_density=0.5": "method.min_density",
    "method.include=[nothing]": "method.include",
    "method.exclude=['*']": "method.include",
    "augmentation.operations=3": "augmentation.operations",
    "augmentation.mixup=0.2 batch_size=1": "batch_size",
    "model.depth=10": "model.depth",
    "model=wrn34_2 model.depth=28": "model.depth",
    "model=vit_tiny dataset.image_size=9": "dataset.image_size",
    "model=vit_tiny model.bn_eps=1e-3": "model.bn_eps",
    "dataset.augment=random_resized_crop": "dataset.augment",
    "dataset.decode=gpu": "dataset.decode",
    "dataset.on_error=skip": "dataset.on_error",
    "dataset.val_images=96": "dataset.val_images",
    "dataset.val_images=1.0": "dataset.val_images",
    "dataset.channels=1": "dataset.channels",
    "dataset=mnist dataset.image_size=32": "dataset.image_size",
    "dataset=cifar10 dataset.classes=7": "dataset.classes",
    "capture=on": "capture",
    "precision=fp16": "precision",
    "model=timm/nothing": "model.name",
    "model=resnet5O": "model.name",
    "schedule=acdc schedule.last_dense=5%": "schedule",
    "schedule.finetune=100%": "schedule.finetune",
    "device=cuda:99": "device",
}
"""Words → the settings of which one must be named."""

MISSING = {
    "dataset=cifar10 dataset.root=nothing dataset.download=false": "dataset.root",
    "dataset=cifar10 dataset.root=empty dataset.download=false": "dataset.root",
    "dataset=mnist dataset.root=a_file": "dataset.root",
    "dataset=fashion_mnist dataset.root=empty dataset.download=false": "dataset.root",
    "dataset=folder dataset.root=nothing": "dataset.root",
    "dataset=folder dataset.root=empty": "dataset.root",
    "dataset=folder dataset.root=a_file": "dataset.root",
    "dataset=folder": "dataset.root",
    "dataset=imagenet dataset.root=nothing": "dataset.root",
    "dataset=imagenet dataset.root=empty": "dataset.root",
    "dataset=cifar10_folder dataset.root=nothing": "dataset.root",
    "model.weights=nothing": "model.weights",
    "model.weights=a_file": "model.weights",
    "model.weights=empty": "model.weights",
    "model.weights=nothing.pt": "model.weights",
    "method.target=latency method.times=nothing": "method.times",
    "method.target=latency method.times=a_file": "method.times",
    "method.target=latency method.times=empty": "method.times",
    "run_dir=a_file": "run_dir",
    "run_dir=a_file/inside": "run_dir",
    "run_dir=with_others": "run_dir",
}
"""The same, in a folder that holds `empty/`, `with_others/` and `a_file`."""
_OF_DATA = ("dataset.image_size", "dataset.train_images", "dataset.test_images", "dataset.classes")


def others() -> Iterator[Case]:
    for word in GRAMMAR:
        shown = re.findall(r"[\w.]+", word)
        yield Case("grammar", (*TINY, word), True, tuple(dict.fromkeys([part[:20] for part in shown] or [repr(word)])))
    for group, table in (("contradictions", CONTRADICTIONS), ("missing files", MISSING)):
        for typed, named in table.items():
            words = typed.split()
            keys = {word.partition("=")[0] for word in words}
            around = [word for word in TINY if word.partition("=")[0] not in keys]
            if "dataset" in keys:
                around = [word for word in around if not word.startswith(_OF_DATA)]
            yield Case(group, (*around, *words), True, tuple(named.split()))


def all_cases() -> list[Case]:
    return [*of_settings(), *of_names(), *others()]


# What is said of them -------------------------------------------------------------------------------------------------


class TooLongError(BaseException):
    """Not to be caught by what runs into it."""


@dataclass(frozen=True)
class Answer:
    case: Case
    kind: str
    said: str


def answer(case: Case) -> Answer:
    """Of a dry run in this process."""

    def too_long(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, which others may use as well
    error: BaseException | None = None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(replace(compose_config(case.words), dry_run=True), list(case.words), Path("out"))
    except (Exception, TooLongError, SystemExit) as caught:
        error = caught
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if isinstance(error, TooLongError):
        return Answer(case, KINDS[5], "".join(traceback.format_tb(error.__traceback__)[-1:]))
    return judged(case, error)


def judged(case: Case, error: BaseException | None) -> Answer:
    if error is None:
        return Answer(case, "accepted nonsense" if case.wrong else "fine", "")
    said = str(error)
    if not isinstance(error, UserError):
        return Answer(case, "traceback", f"{type(error).__name__}: {said[:200]}")
    if len(said.splitlines()) > 1 or len(said) > 1000:
        return Answer(case, "several lines", said[:300])
    return Answer(case, "fine" if any(name in said for name in case.named) else "names no setting", said)


def commanded(case: Case) -> Answer:
    """Of the real command."""
    command = [sys.executable, "-m", "st3.train", *case.words, "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    said = done.stderr.removeprefix("st3-train: error: ").rstrip("\n")
    if "Traceback" in said:
        return Answer(case, "traceback", said.splitlines()[-1][:200])
    return judged(case, UserError(said) if done.returncode else None)


def with_files() -> None:
    """What `MISSING` expects in the working directory."""
    Path("empty").mkdir()
    Path("with_others").mkdir()
    Path("with_others", "something.txt").write_text("text")
    Path("a_file").write_text("text")


def table(answers: Sequence[Answer]) -> str:
    counts = Counter((each.case.group, each.kind) for each in answers)
    groups = list(dict.fromkeys(each.case.group for each in answers))
    lines = [f"| cases | {' | '.join(('all', *KINDS))} |", f"| --- |{' ---: |' * (len(KINDS) + 1)}"]
    for group in (*groups, "all"):
        of = [sum(n for (g, k), n in counts.items() if group in (g, "all") and k == kind) for kind in KINDS]
        lines.append(f"| {group} | {' | '.join(map(str, (sum(of), *of)))} |")
    offenders = [each for each in answers if each.kind != "fine"]
    lines += [""] if offenders else []
    for each in offenders:
        typed = " ".join(repr(word) if len(word) < 100 else f"{word[:40]!r}…" for word in each.case.words[-2:])
        lines.append(f"- {each.kind}: `{typed}` {' '.join(each.said.split())[:240]}")
    return "\n".join(lines)


def _start() -> None:
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GROUP,…", help="some groups of cases")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--commands", type=int, default=20, metavar="N", help="cases for the real command (default 20)")
    options = parser.parse_args()
    cases = [each for each in all_cases() if not options.only or each.group in options.only.split(",")]
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # the command shall be that of this checkout
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with_files()
        with Pool(options.jobs, _start) as pool:
            answers = pool.map(answer, cases, chunksize=1)
        print(table(answers))
        chosen = cases[:: math.ceil(len(cases) / options.commands)] if options.commands else []
        if chosen:
            print(f"\nThe same by the command st3-train:\n\n{table([commanded(case) for case in chosen])}")


if __name__ == "__main__":
    main()
