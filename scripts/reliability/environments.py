"""Whole runs of st3-train, and two other commands, in odd environments: a Markdown table of how each one ended.

    python scripts/reliability/environments.py [--only closed,locale] > environments.md

A run may end well, or in one line and the exit code of its kind before training has begun. Nothing ends in a traceback.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TINY = (
    "dataset=fake dataset.image_size=8 dataset.train_images=64 dataset.test_images=32 dataset.classes=7 batch_size=32 "
    "epochs=1 log_every=1 device=cpu precision=fp32 'method.exclude=[conv1]'"
)
SECONDS = 120

CASES = {
    "plain": "$run",
    "locale: PYTHONIOENCODING=ascii": "PYTHONIOENCODING=ascii $run",
    "locale: PYTHONIOENCODING=latin-1": "PYTHONIOENCODING=latin-1 $run",
    "locale: ascii, PYTHONUTF8=1": "PYTHONIOENCODING=ascii PYTHONUTF8=1 $run",
    "locale: ascii, PYTHONUTF8=0": "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 PYTHONIOENCODING=ascii $run",
    "locale: LC_ALL=C": "LC_ALL=C $run",
    "locale: LC_ALL=POSIX, nothing coerced": "LC_ALL=POSIX PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $run",
    "locale: LC_ALL=nonsense": "LC_ALL=nonsense $run",
    "locale: ascii, a mistake": "PYTHONIOENCODING=ascii $run sparsity=∞",
    "locale: ascii, a dry run": "PYTHONIOENCODING=ascii $run dry_run=true",
    "locale: ascii, help": "PYTHONIOENCODING=ascii $run --help",
    "locale: ascii, st3 --help": "PYTHONIOENCODING=ascii $st3 --help",
    "locale: ascii, st3 reproduce": "PYTHONIOENCODING=ascii $st3 reproduce fashion_mnist_embedded --dry-run",
    "closed: stdout": "$run >&-",
    "closed: stderr": "$run 2>&-",
    "closed: both": "$run >&- 2>&-",
    "closed: stdin": "$run <&-",
    "closed: all": "$run <&- >&- 2>&-",
    "closed: stdout, a mistake": "$run sparsity=2 >&-",
    "closed: stderr, a mistake": "$run sparsity=2 2>&-",
    "closed: st3 report, stdout": "$run >said && $st3 report run >&-",
    "pipe: broken": "$run | true; exit ${PIPESTATUS[0]}",
    "pipe: broken, a dry run": "$run dry_run=true | true; exit ${PIPESTATUS[0]}",
    "pipe: full": "$run > /dev/full",
    "folder: deleted": "mkdir gone; cd gone; rmdir ../gone; $run",
    "folder: deleted, run_dir elsewhere": "there=$PWD; mkdir gone; cd gone; rmdir ../gone; $run run_dir=$there/run",
    "folder: read-only": "mkdir closed; chmod a-w closed; cd closed; $run",
    "folder: spaces and quotes": """mkdir "a 'b' \\"c\\" d"; cd a*; $run""",
    "folder: unicode": "mkdir 'ü σ 漢'; cd ü*; $run",
    "folder: unicode, ascii": "mkdir 'ü σ 漢'; cd ü*; LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $run",
    "folder: a newline": "mkdir $'a\\nb'; cd a*; $run",
    "folder: very long": 'for i in 1 2 3 4 5 6; do mkdir $(printf "x%.0s" {1..200}); cd x*; done; $run',
    "run_dir: spaces": "$run 'run_dir=a b'",
    "run_dir: a newline": "$run \"run_dir='a\nb'\"",
    "run_dir: no UTF-8": "$run $'run_dir=a\\xff'",
    "run_dir: too long a name": '$run run_dir=$(printf "x%.0s" {1..300})',
    "hydra: HYDRA_FULL_ERROR=0": "HYDRA_FULL_ERROR=0 $run",
    "hydra: HYDRA_FULL_ERROR=1": "HYDRA_FULL_ERROR=1 $run",
    "hydra: HYDRA_FULL_ERROR=0, a mistake": "HYDRA_FULL_ERROR=0 $run sparsity=2",
    "hydra: HYDRA_FULL_ERROR=0, a group": "HYDRA_FULL_ERROR=0 $run method=nothing",
    "home: unset": "env -u HOME $run",
    "home: not there": "HOME=/nothing $run",
    "home: unset, no user": "env -u HOME -u USER -u LOGNAME $run",
    "temporary: not there": "TMPDIR=/nothing $run",
    "temporary: read-only": "mkdir closed; chmod a-w closed; TMPDIR=$PWD/closed $run",
    "temporary: a file": "touch file; TMPDIR=$PWD/file $run",
    "limits: memory of 1 GB": "ulimit -v 1000000; $run",
    "limits: memory of 2 GB": "ulimit -v 2000000; $run",
    "limits: files of 10 kB": "ulimit -f 10; $run",
    "limits: files of 1 MB": "ulimit -f 1000; $run",
    "limits: no file": "ulimit -f 0; $run",
    "limits: 20 open files": "ulimit -n 20; $run",
    "terminal: NO_COLOR": "NO_COLOR=1 $run",
    "terminal: dumb": "TERM=dumb $run",
    "terminal: COLUMNS=1": "COLUMNS=1 $run",
    "terminal: COLUMNS=abc, help": "COLUMNS=abc $st3 --help",
    "variables: OMP_NUM_THREADS=abc": "OMP_NUM_THREADS=abc $run",
    "variables: OMP_NUM_THREADS=0": "OMP_NUM_THREADS=0 $run",
    "variables: MPLBACKEND=nonsense": "MPLBACKEND=nonsense $run",
    "variables: PYTHONWARNINGS=error": "PYTHONWARNINGS=error $run",
    "variables: PYTHONOPTIMIZE=2": "PYTHONOPTIMIZE=2 $run",
    "variables: PYTHONOPTIMIZE=2, st3 --help": "PYTHONOPTIMIZE=2 $st3 --help",
    "variables: PYTHONOPTIMIZE=2, st3 report --help": "PYTHONOPTIMIZE=2 $st3 report --help",
    "variables: WORLD_SIZE=abc": "WORLD_SIZE=abc $run",
    "variables: CUDA_VISIBLE_DEVICES=abc": "CUDA_VISIBLE_DEVICES=abc $run",
    "variables: COMP_LINE of a shell": "COMP_LINE='st3-train sch' COMP_POINT=13 $run",
}
"""What bash is told; `$run` trains into run/, `$st3` is the other command."""

_ASKED = {141: "a broken pipe", 153: "the limit of files"}


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    case: str
    kind: str
    code: int
    said: str
    """The last line on stderr."""


def ending(case: str, folder: Path) -> Ending:
    """Of a case, in an empty folder."""
    run = f"{sys.executable} -m st3.train {TINY}"
    script = CASES[case].replace("$run", run if "run_dir=" in CASES[case] else f"{run} run_dir=run")
    script = script.replace("$st3", f"{sys.executable} -m st3")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    environment.pop("PYTHONIOENCODING", None)
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, timeout=SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ending(case, "took too long", -1, "")
    err = done.stderr.decode(errors="replace")
    lines = [line for line in err.splitlines() if line.strip()]
    said, began = lines[-1] if lines else "", any(folder.rglob("config.yaml"))
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    complaints = [line for line in lines if line.startswith("st3")]
    if "Traceback" in err or "Exception ignored" in err or code in (1, 120, 134, 139):
        kind = "TRACEBACK after training began" if began else "TRACEBACK"
    elif code == 0:
        kind = "ends well"
    elif code in _ASKED:
        kind = "ended by what was asked"
    elif began:
        kind = "refused after training began" if complaints else "TRACEBACK after training began"
    else:
        kind = "refused before training"
    return Ending(case, kind, code, said[:160])


def table(endings: list[Ending]) -> str:
    lines = ["| environment | exit code | ended | its last line on stderr |", "| --- | ---: | --- | --- |"]
    for each in endings:
        said = each.said.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {each.case} | {each.code} | {each.kind} | {said} |")
    counts = Counter(each.kind for each in endings)
    return "\n".join([*lines, "", ", ".join(f"{count} {kind}" for kind, count in counts.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD,…", help="cases whose names begin with one of them")
    options = parser.parse_args()
    endings = []
    for case in CASES:
        if case.startswith(tuple(options.only.split(","))):
            with tempfile.TemporaryDirectory() as folder:
                endings.append(ending(case, Path(folder)))
    print(table(endings))


if __name__ == "__main__":
    main()
