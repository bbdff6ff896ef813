"""The one entry point, `st3-train` or `python -m st3.train`: compose → check → run (`st3.run`).

Everything that imports PyTorch is imported late, so that --help and shell completion answer at once.
"""

import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from st3.compose import check_words, config_path, in_one_line, of_stored_run, spell_out
from st3.door import open_door
from st3.errors import DiskError, LonelyError, UserError, of_code, one_line

if TYPE_CHECKING:
    from st3.config import Config


def main() -> None:
    """Console entry. What the user can mend ends in one line and the exit code of its kind."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    started, process = datetime.now(), os.getpid()
    launcher, composing, exit_code = "", True, 0
    swept: list[Path] = []
    failed: list[str] = []

    @hydra.main(config_path=config_path(), config_name="config", version_base="1.3")
    def job(composed: DictConfig) -> None:
        nonlocal composing, exit_code
        from st3.config import load_config
        from st3.run import run

        composing = False
        hydra_config = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        number = hydra_config.job.num if hydra_config.mode == RunMode.MULTIRUN else None
        if number is not None and _is_first_process():
            print(f"\n[{number}] {' '.join(overrides)}", flush=True)
        try:
            config = load_config(of_stored_run(composed, overrides))
            directory = _default_dir(config, started, number)
            if os.getpid() != process and config.run_dir is None:  # preempted and queued again, it shall continue
                config = replace(config, run_dir=str(directory))
            result = run(config, overrides, directory)
            if result and number is not None:
                swept.append(Path(config.run_dir or result.run_dir))
            if result and result.constant_logits:
                exit_code = exit_code or 1
        except LonelyError as error:
            _complain(error)
            os._exit(error.exit_code)  # at once, without the rest of a sweep: nothing less ends the others
        except UserError as error:  # the other jobs of a sweep go on
            exit_code = exit_code or error.exit_code
            _complain(error)
            failed.append(f"[{number}] {error}")
            if os.getpid() != process:  # a launcher's: what this process sets here is lost, what it raises is not
                raise of_code(error.exit_code, f"[{number}] {error}") from error
        except BrokenPipeError:  # st3-train … | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            exit_code = 128 + signal.SIGPIPE

    try:
        open_door()
        check_words(sys.argv[1:])
        sys.argv[1:] = spell_out(sys.argv[1:])
        launcher = _chosen_launcher(started)
        with _scratch() as scratch:
            os.environ["ST3_SCRATCH"] = scratch  # where Hydra may write before anything is checked
            job()
        if {"-m", "--multirun"} & set(sys.argv) and _is_first_process():
            _end_sweep(swept, failed, _sweep_dir(started) if launcher else None)
    except (HydraException, OmegaConfBaseException) as error:
        _complain(in_one_line(error))
        _exit(2)
    except UserError as error:
        _complain(error)
        if launcher:
            print(f"no report: st3 report {_sweep_dir(started)} shows the other jobs", flush=True)
        _exit(error.exit_code)
    except ValueError as error:
        if launcher or not composing:  # a defect, perhaps one that a launcher's process has met
            raise
        _complain(f"{in_one_line(error)} (in {' '.join(sys.argv[1:])})")  # model=null and the like
        _exit(2)
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit"):
            raise
        _complain(f"{' '.join(str(error).splitlines()[:2])}; the other jobs go on")  # killed: it has sent nothing back
        _exit(1)
    except ImportError as error:
        if ".so" not in str(error):
            raise
        _complain(f"PyTorch cannot be loaded here ({one_line(error)})")  # too little memory is left to it
        _exit(2)
    except KeyboardInterrupt as interruption:
        sys.exit(getattr(interruption, "exit_code", 128 + signal.SIGINT))
    if exit_code:
        _exit(exit_code)
    if "st3.training.distributed" in sys.modules:
        from st3.training.distributed import leave

        leave()


def _scratch() -> tempfile.TemporaryDirectory:
    """A folder for temporary files. Raises `DiskError`."""
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise DiskError("no folder takes temporary files: set TMPDIR to one that can be written") from error


def _default_dir(config: "Config", started: datetime, number: int | None) -> Path:
    """Below outputs/, named by time and content; job `number` of a sweep goes into the sweep's folder."""
    name = f"{config.model.name}-{config.dataset.name}-{config.method.name}-{config.target_sparsity:g}-s{config.seed}"
    name = re.sub(r"[^\w.=-]+", "_", name)
    if number is None:
        return Path("outputs", f"{started:%Y%m%d-%H%M%S}-{name}")
    return _sweep_dir(started) / f"{number}-{name}"


def _sweep_dir(started: datetime) -> Path:
    return Path("outputs", f"{started:%Y%m%d-%H%M%S}-sweep")


def _end_sweep(swept: list[Path], failed: list[str], elsewhere: Path | None) -> None:
    """The table of a sweep's runs and its page, and which jobs have failed. A launcher's jobs ran in other processes:
    what they have left is read from the folder `elsewhere`."""
    from st3.overview import overview

    if elsewhere and any(word.startswith("run_dir=") for word in sys.argv):
        print("\nno report, as these jobs have chosen their folders: st3 report DIR shows them", flush=True)
    elif paths := [elsewhere] if elsewhere else swept:
        try:
            text, _ = overview(paths)
            print(f"\n{text}", flush=True)
        except UserError as error:  # the runs are there nevertheless
            print(f"\nno report: {error}", flush=True)
    for job in failed:
        print(f"failed     {job}", flush=True)


def _chosen_launcher(started: datetime) -> str:
    """The hydra/launcher=… that was typed, or nothing. Submitit is told where to keep its files.

    Raises `UserError` where there is no sweep.
    """
    launcher = next((each for each in sys.argv if each.startswith("hydra/launcher=")), "")
    if launcher and not {"-m", "--multirun"} & set(sys.argv):
        raise UserError(f"{launcher} has no effect on a single run: add -m")
    if "=submitit" in launcher and not any(each.startswith("hydra.launcher.submitit_folder=") for each in sys.argv):
        logs = _sweep_dir(started) / "submitit"  # in the working directory, which the other machines see, too
        sys.argv.append(f"hydra.launcher.submitit_folder={logs}")
        print(f"jobs go to {launcher}; what they say is in {logs}/", flush=True)
    return launcher


def _is_first_process() -> bool:
    """Of those that torchrun started; known before PyTorch is."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _exit(code: int) -> None:
    if not _is_first_process():
        time.sleep(5)  # torchrun ends all as soon as one does: the first shall have said why
    sys.exit(code)


def _complain(message: object) -> None:
    if _is_first_process() or isinstance(message, LonelyError):  # other mistakes are found by all
        print(f"st3-train: error: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
