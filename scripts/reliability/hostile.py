"""Runs, networks and tables that somebody has made to do harm: does a command that reads them end in one line, soon?

    python -m scripts.reliability.hostile OUT [--only network,checkpoint] > hostile.md

A small run is trained to its end, and another up to a checkpoint. In a copy of it one file is replaced, and where the
run has manifests they are made to fit, so that no checksum helps. Then a command that reads the file is run in a child
of this process. It may end well, where nothing is wrong for it, or with one line and the exit code of its kind: within
60 s, in at most 1.5 GB more than where nothing is hostile, and without having run what the file holds. Prints a table,
and each case that did not end so.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what commands load later takes seconds: here it is loaded once, before they are forked
import yaml
from PIL import Image

from scripts.reliability.runs import SMALL, running
from st3 import train
from st3.cli import main as st3
from st3.training.checkpoints import load_checkpoint
from st3.training.generations import BEST, METRICS, STATE, Generations
from st3.training.manifest import Manifest
from st3.training.run_directory import SEALED

SECONDS, MORE_MEMORY, LONGEST = 60, 1500 * 2**20, 600
HARM = "harm"
"""A file that code would leave."""
VICTIM = "victim"
"""A file that nobody may write to, and a folder with one."""
CODE = f"touch {HARM}"
SCRIPT = "<script>harm()</script>"
FORMULA = "=HYPERLINK(1)"
GOOD = {0, 1, 2, 3, 4, 5, 6}
"""Exit codes of what ends well, of an evaluation of nothing, and of errors that such files can make."""
TOLD = r"st3[\w -]*: error: |Damaged, and not counted: |run: "
"""How a line begins that says what is wrong: of any command, of the report of several runs, of verify."""
KINDS = (
    "one line",
    "nothing wrong",
    "TRACEBACK",
    "several lines",
    "too long",
    "too much memory",
    "HARM DONE",
    "not escaped",
)
READERS = {
    "continue": ["train", *SMALL, "epochs=3", "run_dir=run"],
    "start": ["train", *SMALL, "epochs=1", "model.weights=run/model.safetensors", "run_dir=other"],
    "verify": ["verify", "run"],
    "report": ["report", "run", "--out", "page.html"],
    "eval": ["eval", "run", "--out", "evaluated"],
    "predict": ["predict", "run", "image.png", "--csv", "found.csv"],
    "export": ["export", "run", "--out", "exported"],
    "table": ["reproduce", "table.yaml", "--out", "table", "--dry-run"],
    "search": ["search", "table.yaml", "--out", "table", "--dry-run"],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    make: Callable[[Path], object]
    """Given the folder in which `run` is, and where the command will run."""
    readers: Sequence[str]
    unfinished: bool = False
    """Whether `run` ends at a checkpoint."""


# What files can hold --------------------------------------------------------------------------------------------------

YAML = {
    "aliases that stand for 10⁹ values": "a: &a [x]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghij")),
    "100,000 lists within each other": "[" * 100_000,
    "100,000 mappings within each other": "".join(f"{' ' * min(n, 1000)}a:\n" for n in range(10_000)),
    "50 MB": "a: 1\n" * 10**7,
    "Python's objects": f"a: !!python/object/apply:os.system ['{CODE}']",
    "_target_ of a function": f"_target_: os.system\nmodel: {{_target_: os.system, command: {CODE}}}",
    "an interpolation of the environment": "epochs: ${oc.env:HOME}\nmodel: ${oc.env:HOME}",
    "an interpolation that is circular": "epochs: ${seed}\nseed: ${epochs}",
    "a number of 10⁶ digits": "epochs: " + "9" * 10**6,
    "a key twice": "epochs: 1\nepochs: 2",
    "NUL": "epochs: 1\0",
    "UTF-16": "epochs: 1".encode("utf-16"),
    "bytes of chance": bytes(range(256)) * 10,
    "nothing": "",
    "null": "null",
    "a list": "[1, 2]",
    "a text": "text",
    "numbers as keys": "1: 2\n3.5: 4\ntrue: 5",
}
JSON = {
    "100,000 lists within each other": "[" * 100_000,
    "50 MB": '{"a": [' + "1," * (25 * 10**6) + "1]}",
    "a number of 10⁶ digits": '{"epochs": ' + "9" * 10**6 + "}",
    "NaN and Infinity": '{"top1": NaN, "top5": Infinity}',
    "NUL": "{\0}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "bytes of chance": bytes(range(256)) * 10,
    "nothing": "",
    "null": "null",
    "a list": "[1, 2]",
    "a text": '"text"',
    "an empty object": "{}",
}
CSV = {
    "a field of 10 MB": "a" * 10**7,
    "a quote without an end": 'epoch,step\n"' + "a,b\n" * 1000,
    "100,000 columns": ",".join(map(str, range(100_000))) + "\n" + "1," * 100_000,
    "50 MB": "epoch,step\n" + "1,2\n" * (12 * 10**6),
    "NUL": "epoch,step\n\0,\0",
    "UTF-16": "epoch,step".encode("utf-16"),
    "bytes of chance": bytes(range(256)) * 10,
    "nothing": "",
    "a header only": "epoch,step\n",
}


def special(path: Path) -> dict[str, Callable[[], object]]:
    """What is no file."""
    return {
        "a FIFO": lambda: os.mkfifo(path),
        "a socket": lambda: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
        "a folder": lambda: path.mkdir(),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to nothing": lambda: path.symlink_to("nothing"),
    }


VALUES: dict[str, Any] = {
    "null": None, "a text": "text", "a list": [1], "an object": {"a": 1}, "-1": -1, "10³⁰⁰": 10**300,
    "infinite": float("inf"), "NaN": float("nan"), "HTML": SCRIPT, "a formula": FORMULA, "a newline": "a\nb",
    "10⁵ signs": "a" * 10**5,
}  # fmt: skip
"""What a field of JSON, YAML or CSV could be instead."""


# The cases ------------------------------------------------------------------------------------------------------------

_OF_YAML = {
    "config.yaml": ("continue", "report", "eval", "export"),
    "overrides.yaml": ("continue", "report"),
    "environment.yaml": ("continue", "report", "eval"),
    "logged.yaml": ("continue",),
}
_OF_JSON = {
    "summary.json": ("continue", "report", "eval"),
    "data.json": ("continue",),
    "manifest.json": ("continue", "verify", "report", "eval"),
    "evaluation/test.json": ("report",),
    "bench/bench.json": ("report",),
}
_OF_CSV = {"metrics.csv": ("continue", "report"), "layers.csv": ("report",)}


def of_text() -> Iterator[Case]:
    """Files of text that are not what they should be, and what is no file in the place of each."""
    for kind, contents, names in (("YAML", YAML, _OF_YAML), ("JSON", JSON, _OF_JSON), ("CSV", CSV, _OF_CSV)):
        for name, readers in names.items():
            for content in contents:
                yield Case(f"{kind} of a run", f"{name}: {content}", _written(name, contents[content]), readers)
    everything = {
        **_OF_YAML,
        **_OF_JSON,
        **_OF_CSV,
        "model.safetensors": ("eval", "start"),
        "best.pt": ("continue", "verify"),
    }
    everything |= {".lock": ("continue",), "checkpoints": ("continue", "verify"), "run.png": ("report",)}
    for name, readers in everything.items():
        for what in special(Path()):
            yield Case("no file", f"{name}: {what}", _special(name, what), readers, name in (".lock", "checkpoints"))


def _written(name: str, content: str | bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def _special(name: str, what: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / name
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        with contextlib.chdir(path.parent):
            special(path)[what]()

    return make


def of_fields(run: Path) -> Iterator[Case]:
    """One field of a file is something else."""
    turn = cycle(VALUES)  # two for each field: all for each would take hours
    for name in ("summary.json", "data.json", "config.yaml"):
        for place in _places(yaml.safe_load((run / name).read_text())):
            for what in (next(turn), next(turn)):
                called = f"{name}: {'.'.join(map(str, place))} is {what}"
                yield Case("fields of a run", called, _field(name, place, what), {**_OF_YAML, **_OF_JSON}[name][:3])
    for name in _OF_CSV:
        with open(run / name, newline="") as file:
            columns = next(csv.reader(file))
        for column in columns:
            for what in ("a text", "-1", "10³⁰⁰", "NaN", "HTML", "a formula"):
                yield Case("fields of a run", f"{name}: {column} is {what}", _cell(name, column, what), ("report",))


def _places(content: Any) -> list[tuple[str | int, ...]]:
    """Where the values stand in nested objects."""
    if not isinstance(content, dict):
        return [()]
    return [(key, *place) for key, value in content.items() for place in _places(value)]


def _field(name: str, place: Sequence[str | int], what: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / name
        content = yaml.safe_load(path.read_text())
        within = content
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = VALUES[what]
        path.write_text(json.dumps(content))  # which is YAML, too

    return make


def _cell(name: str, column: str, what: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / name
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row[column] = str(VALUES[what])
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return make


def of_links() -> Iterator[Case]:
    """Links in the place of files and folders that are written to."""
    for name in (*SEALED, "stopped.json", "manifest.json"):
        yield Case("links", f".{name}.partial to a file", _link(f".{name}.partial", VICTIM), ("continue",), True)
        yield Case("links", f"{name} to a file", _link(name, VICTIM), ("continue",), True)
    for name in (".lock", "trace.json.gz"):
        yield Case("links", f"{name} to a file", _link(name, VICTIM), ("continue",), True)
    yield Case("links", "checkpoints to a folder", _link("checkpoints", "victims"), ("continue", "verify"), True)
    yield Case(
        "links", "the last checkpoint to a folder", _link("checkpoints/9", "victims"), ("continue", "verify"), True
    )
    yield Case(
        "links", "a part of a checkpoint to a folder", _link("checkpoints/.9.partial", "victims"), ("continue",), True
    )
    yield Case("links", "the evaluations to a folder", _link("evaluation", "victims"), ("report",))


def _link(name: str, to: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to((folder / to).resolve())

    return make


def of_networks(run: Path) -> Iterator[Case]:
    """model.safetensors, packed and not, and files of torch.save."""
    whole = (run / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    readers = ("eval", "predict", "start")

    def built(change: Callable[[dict], object] | None = None, tail: bytes = data) -> Callable[[], bytes]:
        def content() -> bytes:
            changed = json.loads(json.dumps(header))
            if change:
                change(changed)
            text = json.dumps(changed).encode()
            return len(text).to_bytes(8, "little") + text + tail

        return content

    def headed(head: bytes, times: int) -> Callable[[], bytes]:
        return lambda: (len(head) * times).to_bytes(8, "little") + head * times + data

    def entry(name: str, **fields: Any) -> Callable[[dict], object]:
        return lambda header: header[name].update(fields)

    def described(**fields: Any) -> Callable[[dict], object]:
        def change(header: dict) -> None:
            network = json.loads(header["__metadata__"]["network"])
            for key, value in fields.items():
                (network["model"] if key in network["model"] else network)[key] = value
            header["__metadata__"]["network"] = json.dumps(network)

        return change

    def meta(**fields: Any) -> Callable[[dict], object]:
        return lambda header: header["__metadata__"].update(fields)

    files: dict[str, Callable[[], bytes]] = {  # some are large: each is made when its turn comes
        "a header of 2⁶³ bytes": lambda: (2**63).to_bytes(8, "little") + whole[8:],
        "a header of 90 MB, not there": lambda: (90 * 10**6).to_bytes(8, "little") + whole[8:],
        "a header of 90 MB of spaces": headed(b" ", 90 * 10**6),
        "a header of 10⁵ lists": headed(b"[", 10**5),
        "no header": bytes,
        "no tensor": lambda: (2).to_bytes(8, "little") + b"{}",
        "offsets that overlap": built(entry(first, data_offsets=header[second]["data_offsets"])),
        "offsets beyond the end": built(entry(first, data_offsets=[0, 2**62])),
        "negative offsets": built(entry(first, data_offsets=[-4, 0])),
        "a shape of 2⁸⁰": built(entry(first, shape=[2**40, 2**40])),
        "a negative shape": built(entry(first, shape=[-1])),
        "a shape of 10⁵ ones": built(entry(first, shape=[1] * 10**5)),
        "an unknown dtype": built(entry(first, dtype="object")),
        "another dtype": built(entry(first, dtype="I32")),
        "names of a tensor": built(lambda header: header.update({SCRIPT: header.pop(first)})),
        "NaN everywhere": built(tail=b"\xff" * len(data)),
        "zeros everywhere": built(tail=bytes(len(data))),
        "no metadata": built(lambda header: header.pop("__metadata__")),
        "metadata as a list": built(lambda header: header.update(__metadata__=[1])),
        "classes of 10⁵ lists": built(meta(classes="[" * 10**5)),
        "classes as a text": built(meta(classes='"text"')),
        "classes as numbers": built(meta(classes="[1, 2, 3, 4, 5, 6, 7]")),
        "10⁷ classes": built(lambda header: meta(classes=json.dumps(["a"] * 10**7))(header)),
        "no classes": built(meta(classes="[]")),
        "classes that are HTML and formulas": built(
            meta(classes=json.dumps([SCRIPT, FORMULA, "a\nb", *"0123"]))
        ),
        "a description of 10⁵ lists": built(meta(network="[" * 10**5)),
        "a description of code": built(described(name="os.system", depth=CODE)),
        "a network of timm's hub": built(described(name="timm/hf_hub:somebody/something")),
        "10⁹ channels": built(described(channels=10**9)),
        "an image of 10⁹ pixels each side": built(described(image_size=10**9)),
        "an image of -1": built(described(image_size=-1)),
        "an image of half a pixel": built(described(image_size=0.5)),
        "a depth of 10⁶": built(described(depth=10**6)),
        "a depth that is a text": built(described(depth="text")),
        "a width of 10⁶": built(described(width=10**6)),
        "a width that is infinite": built(described(width=float("inf"))),
        "no mean": built(described(mean=[])),
        "a mean of texts": built(described(mean=["a", "b", "c"])),
        "std of 0": built(described(std=[0, 0, 0])),
        "std that is infinite": built(described(std=[float("inf")] * 3)),
        "a view that is code": built(described(view=CODE)),
        "a sparsity of texts": built(described(sparsity=SCRIPT, sparsity_target=FORMULA, target=SCRIPT)),
    }  # fmt: skip
    for name, content in files.items():
        yield Case("networks", name, _made("run/model.safetensors", content), readers)
    packed: dict[str, Callable[[], bytes]] = {
        "2 GB of zeros": lambda: _zeros(2 * 2**30),
        "2 GB of zeros behind a good header": lambda: _zeros(2 * 2**30, whole[: 8 + length]),
        "a header of 99 MB": lambda: _zeros(10**8, (99 * 10**6).to_bytes(8, "little")),
        "cut": lambda: gzip.compress(whole)[:-1000],
        "another checksum": lambda: gzip.compress(whole)[:-8] + bytes(8),
        "no gzip": lambda: whole,
        "nothing": bytes,
    }
    for name, content in packed.items():
        yield Case("networks", f"packed: {name}", _made("network.safetensors.gz", content), ("packed",))
    for name, content in PICKLES.items():
        yield Case("networks", f"torch.save: {name}", _made("run/weights.pt", content), ("pickled",))


READERS["packed"] = ["eval", "network.safetensors.gz", "--data", "images"]
READERS["pickled"] = ["train", *SMALL, "epochs=1", "model.weights=run/weights.pt", "run_dir=other"]


def _zeros(size: int, before: bytes = b"") -> bytes:
    """So many bytes of zero behind `before`, packed."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(before)
        for _ in range(0, size, 2**24):
            file.write(bytes(2**24))
    return packed.getvalue()


def _made(name: str, content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content())


class _Code:
    """Runs something when it is read."""

    def __reduce__(self) -> tuple:
        return os.system, (CODE,)


def _deep(levels: int) -> object:
    made: list = []
    for _ in range(levels):
        made = [made]
    return made


def _unpacked_from(size: int) -> bytes:
    """A file of torch.save whose parts are compressed, of `size` bytes when they are not."""
    file, content = io.BytesIO(), _saved({"conv1.weight": torch.zeros(1)})
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in before.namelist():
            archive.writestr(each, bytes(size) if each.endswith("data/0") else before.read(each))
    return file.getvalue()


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _legacy(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


PICKLES: dict[str, Callable[[], bytes]] = {
    "code": lambda: _saved({"a": _Code()}),
    "code, the older format": lambda: _legacy({"a": _Code()}),
    "a plain pickle of code": lambda: pickle.dumps(_Code()),
    "2 GB, compressed": lambda: _unpacked_from(2**31),
    "a tensor of 10¹⁵ numbers in one": lambda: _saved({"conv1.weight": torch.zeros(1).expand(10**15)}),
    "300 lists within each other": lambda: _saved({"a": _deep(300)}),
    "numbers as names": lambda: _saved({1: torch.zeros(1), 2.5: torch.zeros(1)}),
    "a list": lambda: _saved([1]),
    "nothing": lambda: b"",
    "bytes of chance": lambda: bytes(range(256)) * 100,
}


def of_checkpoints(run: Path) -> Iterator[Case]:
    """The newest checkpoint, with a manifest that fits."""
    newest = str(Generations(run / "checkpoints").numbers()[-1])
    for name in PICKLES:
        yield Case(
            "checkpoints",
            f"state.pt: {name}",
            _made(f"run/checkpoints/{newest}/{STATE}", PICKLES[name]),
            ("continue", "verify"),
            True,
        )
        yield Case(
            "checkpoints",
            f"best.pt: {name}",
            _made(f"run/checkpoints/{newest}/{BEST}", PICKLES[name]),
            ("continue", "verify"),
            True,
        )
    for content in CSV:
        yield Case(
            "checkpoints",
            f"metrics.csv: {content}",
            _written(f"checkpoints/{newest}/{METRICS}", CSV[content]),
            ("continue",),
            True,
        )
    state = load_checkpoint(run / "checkpoints" / newest / STATE)
    for key in state:
        for what in VALUES:
            yield Case("checkpoints", f"{key} is {what}", _state(newest, key, what), ("continue",), True)
        yield Case("checkpoints", f"{key} is not there", _state(newest, key, None), ("continue",), True)


def _state(number: str, key: str, what: str | None) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / "run" / "checkpoints" / number / STATE
        state = load_checkpoint(path)
        if what is None:
            del state[key]
        else:
            state[key] = VALUES[what]
        path.write_bytes(_saved(state))

    return make


TABLE = {
    "title": "A table", "overrides": list(SMALL), "sparsities": [0.9], "series": [{"label": "ST-3", "method": "st3"}],
}  # fmt: skip


def of_tables() -> Iterator[Case]:
    """table.yaml."""
    for name in YAML:
        yield Case("tables", f"table.yaml: {name}", _table(YAML[name]), ("table", "search"))
    for key in TABLE:
        for what in VALUES:
            yield Case("tables", f"{key} is {what}", _table(json.dumps(TABLE | {key: VALUES[what]})), ("table",))
    overrides = {
        "hydra's settings": "hydra.run.dir=/tmp", "a launcher": "hydra/launcher=joblib", "a sweep": "seed=1,2",
        "its own run_dir": "run_dir=x", "another network's code": "model=_target_", "what is added": "+a=1",
        "what is taken away": "~model", "grammar": "a={", "an option": "--multirun",
    }  # fmt: skip
    for name, override in overrides.items():
        for where in ("table", "series"):
            changed = json.loads(json.dumps(TABLE))
            (changed if where == "table" else changed["series"][0]).setdefault("overrides", []).append(override)
            yield Case("tables", f"{name} in the overrides of the {where}", _table(json.dumps(changed)), ("table",))
    labels = {
        "HTML": SCRIPT,
        "a formula": FORMULA,
        "a path": "../../x",
        "an absolute path": "/etc/x",
        "10⁵ signs": "a" * 10**5,
    }
    for name, label in labels.items():
        changed = TABLE | {"series": [{"label": label, "method": "st3"}]}
        yield Case("tables", f"a label that is {name}", _table(json.dumps(changed)), ("table",))
    many = TABLE | {"sparsities": [n / 10**5 for n in range(1, 10**5)]}
    yield Case("tables", "10⁵ sparsities", _table(json.dumps(many)), ("table",))


def _table(content: str | bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "table.yaml").write_bytes(content.encode() if isinstance(content, str) else content)

    return make


# How they end ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    code: int
    said: str
    seconds: float
    memory: int
    """Most bytes that were resident."""


def ended(reader: str, folder: Path) -> Ending:
    """Of a command that is run in a child of this process."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30,) * 2)
        code = 99
        try:
            verb, *words = READERS[reader]
            if verb == "train":
                sys.argv = ["st3-train", *words]
                train.main()
                code = 0
            else:
                code = st3([verb, *words])
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - began
        if pid:
            break
        if seconds > SECONDS:
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.01)
    said = (folder / "said.txt").read_text(errors="replace")
    return Ending(os.waitstatus_to_exitcode(status), said, seconds, used.ru_maxrss * 1024)


def judged(ending: Ending, folder: Path, plain: Ending) -> str:
    lines = [line for line in ending.said.splitlines() if re.match(TOLD, line)]
    pages = [path.read_text() for path in folder.rglob("*.html")]
    cells = [path.read_text() for path in [*folder.glob("*.csv"), *folder.glob("evaluated/*.csv")]]
    victims = [folder / VICTIM, folder / "victims" / VICTIM, folder / "victims" / "more" / VICTIM]
    if (folder / HARM).exists() or not all(each.exists() and each.read_bytes() == VICTIM.encode() for each in victims):
        return "HARM DONE"
    if ending.seconds > SECONDS:
        return "too long"
    if "Traceback" in ending.said or ending.code not in GOOD:
        return "TRACEBACK"
    if ending.memory > plain.memory + MORE_MEMORY:
        return "too much memory"
    if any(SCRIPT in page for page in pages) or any(
        re.search(rf"(^|,|\"){re.escape(FORMULA)}", cell, re.M) for cell in cells
    ):
        return "not escaped"
    if ending.code in (0, 1):
        return "nothing wrong"
    return "one line" if len(lines) == 1 and len(lines[0]) < LONGEST else "several lines"


def sealed(folder: Path, case: Case) -> None:
    """Let the manifests say that all of it is right."""
    run = folder / "run"
    for manifest in [run / "manifest.json", *run.glob("checkpoints/*/manifest.json")]:
        if manifest.is_symlink() or not manifest.is_file() or case.name.startswith("manifest.json"):
            continue
        names = json.loads(manifest.read_text())["files"]
        regular = [name for name in names if not (manifest.parent / name).is_symlink()]
        Manifest.of(manifest.parent, regular).write()


def two_runs(folder: Path) -> None:
    """The runs, and what commands need beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    for label in "0123456":
        (folder / "images" / label).mkdir(parents=True)
        shutil.copy(folder / "image.png", folder / "images" / label)
    for name in ("finished", "unfinished"):
        with running([*SMALL, "epochs=3", f"run_dir={name}"], folder) as process:
            process.wait()
    for name in ("manifest.json", "summary.json", "model.safetensors"):
        (folder / "unfinished" / name).unlink()
    kept = folder / "unfinished" / "checkpoints"
    shutil.rmtree(kept / str(Generations(kept).numbers()[-1]))  # an epoch is left to be trained


def all_cases(folder: Path) -> list[Case]:
    run = folder / "finished"
    of_runs = [*of_text(), *of_fields(run), *of_links(), *of_checkpoints(folder / "unfinished")]
    return [*of_runs, *of_networks(run), *of_tables()]


def usual_endings(folder: Path, readers: Iterable[str]) -> dict[str, Ending]:
    """Of those commands that read a run, where nothing is hostile."""
    usual = sorted(set(readers) - {"packed", "pickled", "table", "search"})
    plain = {reader: ended(reader, prepared(folder, "finished")) for reader in usual}
    wrong = [f"{reader}: {ending.code} {ending.said[-300:]}" for reader, ending in plain.items() if ending.code > 1]
    assert not wrong, wrong
    return plain


def counted(folder: Path, cases: Sequence[Case]) -> Counter[tuple[str, str]]:
    """How many of each group have ended in which way. Prints those that ended as they should not."""
    readers = {reader for case in cases for reader in case.readers} | {"eval"}  # one at least, to compare memory with
    plain, counts = usual_endings(folder, readers), Counter[tuple[str, str]]()
    most = max(plain.values(), key=lambda ending: ending.memory)
    for case in cases:
        for reader in case.readers:
            tried = prepared(folder, "unfinished" if case.unfinished else "finished")
            case.make(tried)
            sealed(tried, case)
            ending = ended(reader, tried)
            kind = judged(ending, tried, plain.get(reader, most))
            counts[case.group, kind] += 1
            if kind not in KINDS[:2]:
                words, megabytes = " ".join(ending.said[-400:].split()), ending.memory // 10**6
                how = f"{ending.code}, {ending.seconds:.1f} s, {megabytes} MB: {words}"
                print(f"- {kind}: {case.group}: {case.name}: {reader}: {how}", flush=True)
    shutil.rmtree(folder / "tried", ignore_errors=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", metavar="WORD,…", help="cases whose group or name holds one of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, asked = options.out / "hostile", [word for word in options.only.split(",") if word]
    two_runs(folder)
    cases = [
        each for each in all_cases(folder) if not asked or any(word in f"{each.group}: {each.name}" for word in asked)
    ]
    counts = counted(folder, cases)
    print(f"\n| what was hostile | n | {' | '.join(KINDS)} |\n|---|{'---|' * (len(KINDS) + 1)}")
    for group in dict.fromkeys(each.group for each in cases):
        of = [counts[group, kind] for kind in KINDS]
        print(f"| {group} | {sum(of)} | {' | '.join(map(str, of))} |")
    return int(any(kind not in KINDS[:2] for _, kind in counts))


def prepared(folder: Path, name: str) -> Path:
    """A new folder in which `run` is a copy of one of the runs."""
    tried = folder / "tried"
    shutil.rmtree(tried, ignore_errors=True)
    tried.mkdir()
    shutil.copytree(folder / name, tried / "run")
    (tried / "victims" / "more").mkdir(parents=True)
    for place in (".", "victims", "victims/more"):
        (tried / place / VICTIM).write_text(VICTIM)
    for each in ("image.png", "images"):
        (tried / each).symlink_to(Path("..", each))
    return tried


if __name__ == "__main__":
    sys.exit(main())
