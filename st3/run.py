"""One run: sketch → build → fit → summary."""

import getpass
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import st3
from st3.config import Config
from st3.data import build_data, probe
from st3.deploy.card import Card
from st3.describe import describe_layers, describe_recipe, describe_result, failures, summarize, warnings_before
from st3.durations import Interval
from st3.errors import DiskError, LonelyError, NotFiniteError
from st3.measure import LayerRow, SparsityMeter, layer_table
from st3.report import draw_run
from st3.resuming import earlier_result, resume
from st3.sketch import Execution, Sketch, choose_execution, sketch
from st3.training.distributed import Processes, join, launched
from st3.training.ema import RawAverage
from st3.training.environment import environment
from st3.training.keeper import Keeper
from st3.training.launches import FewerLaunches
from st3.training.loggers import RESULT, Logger, check_client, open_loggers
from st3.training.loop import fit, seed_everything
from st3.training.machine import Machine, pick_machine
from st3.training.profiling import StepProfiler, reset_peak_memory
from st3.training.recorder import Recorder, RunRecorder, SilentRecorder
from st3.training.run_directory import RunDirectory
from st3.training.signals import Interruption, Signals
from st3.training.state import TrainingState
from st3.training.step import CapturedStep, EagerStep, Step
from st3.training.summary import Summary


def run(config: Config, overrides: list[str], default_dir: Path) -> Summary | None:
    """Train as `config` says, in `config.run_dir` or `default_dir`; a folder with an unfinished part is continued.

    Returns the summary, or None for a dry run. Raises `UserError` for what the user can mend, and `Interruption` where
    a signal has asked it to end; its state is saved then.
    """
    processes = launched()
    join(processes, config.ddp_timeout)
    machine = pick_machine(config.device, config.precision, processes)
    check_client(config.logger)
    plan = sketch(config, processes)
    execution = choose_execution(plan, machine)
    say = partial(print, flush=True) if processes.is_main else _silent
    say(describe_recipe(plan, machine, execution))
    for warning in warnings_before(plan):
        say(f"warning    {warning}")
    if config.dry_run:
        processes.from_main(lambda: probe(config.dataset))
        say(f"\n{describe_layers(plan.rows)}")
        return None

    directory = RunDirectory(Path(config.run_dir)) if config.run_dir else RunDirectory(default_dir, fresh=True)
    with Signals() as signals, ExitStack() as at_the_end:
        if done := processes.from_main(lambda: claim(directory, plan, at_the_end)):
            say(f"\n{directory.path} holds this run already, finished:\n{describe_result(done)}")
            return done
        with explained(directory, processes, say):
            result = train(plan, machine, execution, directory, overrides, signals, say)
        say(f"\n{describe_result(result)}")
        signals.obey()  # one that came at the very end
    return result


def claim(directory: RunDirectory, plan: Sketch, at_the_end: ExitStack) -> Summary | None:
    """The summary of this run where it is finished; else the folder is locked until `at_the_end`."""
    if done := earlier_result(directory, plan):
        return done
    directory.claim()
    at_the_end.callback(directory.release)
    return earlier_result(directory, plan)  # by a process that has let go of it in this moment


def train(
    plan: Sketch,
    machine: Machine,
    execution: Execution,
    directory: RunDirectory,
    overrides: Sequence[str],
    signals: Signals,
    say: Callable[[str], object],
) -> Summary:
    """The training, from its beginning or from where it was saved, and what it leaves behind."""
    config, processes = plan.config, machine.processes
    state, step = build(plan, machine, execution)
    data = processes.in_turn(
        lambda: build_data(
            config.dataset,
            augmentation=config.augmentation,
            batch_size=config.batch_size // config.accumulate,
            seed=config.seed,
            device=machine.device,
            rank=processes.rank,
            world_size=processes.world_size,
        )
    )
    here = environment(machine, st3.__version__)
    saved = resume(directory, plan, state, data, processes, here)
    for line in saved.lines:
        say(line)
    for warning in data.warnings():
        say(f"warning    {warning}")

    def layer_rows() -> list[LayerRow]:
        return layer_table(state.sparsifier.layers(), plan.macs)

    def summary() -> Summary:
        return summarize(plan, state, data, layer_rows(), directory.path, machine)

    def start_recording() -> tuple[Recorder, list[Logger]]:
        profiler = StepProfiler(machine.device, plan.plan.total_steps - state.step) if config.profile else None
        directory.start(config.plain(), overrides, here, data.contents)
        if plan.times:
            plan.times.write(directory.times)
        if profiler:
            profiler.start(directory.trace)
        loggers = open_loggers(config.logger, directory, config.flat(), state.step)
        recorder = RunRecorder(
            directory,
            state,
            plan.plan,
            loggers,
            settings=config.plain(),
            metrics=saved.metrics,
            layer_rows=layer_rows,
            summary=summary,
            failures=partial(failures, plan, state),
            profiler=profiler,
        )
        return recorder, loggers

    with ExitStack() as at_the_end:
        recorder, loggers = processes.on_main(start_recording) or (SilentRecorder(), [])
        for logger in loggers:
            at_the_end.callback(logger.close)
        keeper = Keeper(processes, recorder, signals, Interval.parse(config.checkpoint_every))
        with signals.noted():
            try:
                measure = SparsityMeter(state.sparsifier, plan.macs)
                with processes.lonely(DiskError):  # which the main process alone can meet
                    fit(state, data, plan.plan, machine, step, recorder, keeper, measure)
            finally:
                recorder.close()
            if state.average:
                state.average.finish()

            def finish() -> Summary:
                directory.write_layers(layer_rows())
                card = Card.of_run(config, data.classes, summary().sparsity)
                directory.write_network(state.model.state_dict(), card.metadata())
                directory.write_summary(summary())
                draw_run(directory)
                result = replace(summary(), finished=True)
                directory.write_summary(result)
                directory.seal()  # last: all the rest is there
                for logger in loggers:
                    logger.result(
                        config.flat(), {tag: getattr(result, name) for name, tag in RESULT.items()}, directory.picture
                    )
                return result

            return processes.from_main(finish)


@contextmanager
def explained(directory: RunDirectory, processes: Processes, say: Callable[[str], object]) -> Iterator[None]:
    """Says how to go on where a training ends before its time."""
    try:
        yield
    except Interruption as interruption:
        if directory.started():
            say(f"\nstopped by {interruption}; to continue: {_continuation(directory, processes)}")
        raise
    except NotFiniteError as error:
        if processes.is_main:
            directory.write_stopped(str(error))
        raise
    except RuntimeError as error:
        if not (reason := processes.lost(error)):
            raise
        raise LonelyError(f"{reason}; to continue: {_continuation(directory, processes)}", 1) from error


def _continuation(directory: RunDirectory, processes: Processes) -> str:
    """The command."""
    here = os.environ.get("LOCAL_WORLD_SIZE", processes.world_size)
    command = "st3-train" if processes.world_size == 1 else f"torchrun --nproc-per-node={here} -m st3.train"
    return f"{command} {shlex.quote(f'run_dir={directory.path}')}"


def build(plan: Sketch, machine: Machine, execution: Execution) -> tuple[TrainingState, Step]:
    """Network, optimizer, sparsifier and the step that moves them, as they are before the first one."""
    config, device = plan.config, machine.device
    if execution.compile:
        keep_compiled_code()
    # Jobs of a sweep share the process.
    torch.compiler.reset()
    reset_peak_memory(device)
    torch.backends.cudnn.benchmark = True  # shapes do not change while training
    seed_everything(config.seed, 0)
    model = plan.make_model().to(device).to(memory_format=torch.channels_last)
    forward: Any = machine.processes.wrap(model)  # before the sparsifier is attached: wrapping writes to the weights
    optimizer = plan.make_optimizer(model)
    sparsifier = plan.make_sparsifier(model).attach(optimizer)
    average = RawAverage(model, sparsifier, config.ema) if config.ema else None
    state = TrainingState(model, optimizer, sparsifier, machine.scaler(), average)
    if execution.compile:
        # With "auto" a part that cannot be compiled runs as it is, and PyTorch says so; with "on" it is an error.
        torch._dynamo.config.suppress_errors = config.compile == "auto"
        forward = torch.compile(forward)
    elif execution.capture:  # of a network that is so small that launches count
        forward = FewerLaunches(model, machine)
    eager = EagerStep(state, plan.plan, machine, forward)
    return state, CapturedStep(eager, required=config.capture == "on") if execution.capture else eager


def keep_compiled_code() -> None:
    """Let later runs find what is compiled now, also after a restart, which empties PyTorch's own place for it.

    In `TORCHINDUCTOR_CACHE_DIR` where that is set, else in the user's folder for caches where that can be written.
    """
    usual = str(Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"))  # PyTorch sets it by itself
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) != usual:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "st3", "compiled")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _silent(text: str) -> None:
    """For the processes that leave speaking to the first one."""
