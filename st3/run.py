"""One run: check → build → fit → summary."""

import json
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import st3
from st3.build import (
    choose_execution,
    make_data,
    make_model,
    make_optimizer,
    make_plan,
    make_sparsifier,
    make_step,
    read_facts,
)
from st3.config import Config
from st3.describe import describe_layers, describe_recipe, describe_result, summarize
from st3.measure import SparsityMeter, layer_macs, layer_table
from st3.report import draw_run
from st3.training.checkpoints import save_json, save_network
from st3.training.distributed import join, launched
from st3.training.ema import RawAverage
from st3.training.loop import fit, seed_everything
from st3.training.precision import pick_device, pick_precision
from st3.training.profiling import StepProfiler, reset_peak_memory
from st3.training.run_directory import RunDirectory, RunRecorder, SilentRecorder, environment
from st3.training.state import TrainingState


def run(config: Config, overrides: list[str], default_dir: Path) -> dict | None:
    """Train as `config` says, in `config.run_dir` or `default_dir`; a folder with an unfinished part is continued.

    Returns the summary, or None for a dry run. Raises `UserError` for what the user can mend.
    """
    processes = launched()
    join(processes)
    device = processes.together(lambda: pick_device(config.device, processes))
    if device.index is not None:
        torch.cuda.set_device(device)  # what asks for "the current device" shall mean this one
    say = partial(print, flush=True) if processes.is_main else lambda _: None
    precision = pick_precision(config.precision, device)
    facts = processes.together(lambda: read_facts(config))
    plan = make_plan(config, facts, processes)

    with torch.device("meta"):  # shapes only: a dry run allocates nothing
        sketch = make_model(config, facts)
    macs = layer_macs(sketch, (config.dataset.channels, config.dataset.image_size, config.dataset.image_size))
    sketched = make_sparsifier(config, plan, sketch, macs).attach(make_optimizer(config, sketch))
    execution = choose_execution(config, plan, precision, processes, sum(macs.values()), sketched.steps_differ)
    rows = layer_table(sketched.layers(), macs)
    say(describe_recipe(config, facts, plan, precision, execution, processes, sketched.method, rows))
    if config.dry_run:
        say(f"\n{describe_layers(rows)}")
        return None

    directory = RunDirectory(Path(config.run_dir)) if config.run_dir else RunDirectory(default_dir, fresh=True)

    def earlier_result() -> dict | None:
        directory.check(asdict(config))
        return directory.finished()

    if result := processes.from_main(earlier_result):
        say(f"\n{directory.path} holds this run already, finished:\n{describe_result(result)}")
        return result

    # Jobs of a sweep share the process.
    torch.compiler.reset()
    reset_peak_memory(device)
    torch.backends.cudnn.benchmark = True  # shapes do not change while training
    seed_everything(config.seed, 0)
    model = make_model(config, facts).to(device, memory_format=torch.channels_last)
    data = processes.in_turn(lambda: make_data(config, device, processes.rank, processes.world_size))
    optimizer = make_optimizer(config, model)
    sparsifier = make_sparsifier(config, plan, model, macs).attach(optimizer)
    average = RawAverage(model, sparsifier, config.ema) if config.ema else None
    state = TrainingState(model, optimizer, sparsifier, precision.scaler(), average)
    step = make_step(config, state, plan, precision, execution, processes)
    if checkpoint := processes.from_main(directory.checkpoint):
        state.load_state_dict(checkpoint)
        say(f"continuing {directory.path} after epoch {state.epoch}")

    def layer_rows():
        return layer_table(sparsifier.layers(), macs)

    def summary():
        return summarize(config, state, layer_rows(), directory.path, device, processes)

    recorder: RunRecorder | SilentRecorder = SilentRecorder()

    def start_recording() -> None:
        nonlocal recorder
        profiler = StepProfiler(device, plan.total_steps - state.step) if config.profile else None
        directory.start(asdict(config), overrides, environment(device, st3.__version__, processes))
        if profiler:
            profiler.start(directory.path / "trace.json.gz")
        recorder = RunRecorder(
            directory,
            state,
            total_steps=plan.total_steps,
            epochs=plan.epochs,
            layer_rows=layer_rows,
            summary=summary,
            profiler=profiler,
        )

    processes.from_main(start_recording)
    try:
        fit(state, data, plan, precision, step, recorder, SparsityMeter(sparsifier, macs), processes)
    except KeyboardInterrupt:
        again = [o for o in overrides if not o.startswith("run_dir=")] + [f"run_dir={directory.path}"]
        say(f"\ninterrupted; to continue: st3-train {shlex.join(again)}")
        raise
    finally:
        recorder.close()
    if average:
        average.finish()

    def finish() -> dict:
        directory.write_layers(layer_rows())
        metadata = {"model": config.model.name, "classes": json.dumps(data.classes), "st3": st3.__version__}
        save_network(directory.path / "model.safetensors", model.state_dict(), metadata)
        save_json(directory.path / "summary.json", summary() | {"finished": False})
        draw_run(directory.path)
        result = summary()
        save_json(directory.path / "summary.json", result | {"finished": True})  # last: all the rest is there
        return result

    result = processes.from_main(finish)
    say(f"\n{describe_result(result)}")
    return result
