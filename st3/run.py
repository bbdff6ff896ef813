"""One run: check → build → fit → summary."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import torch

import st3
from st3.build import make_data, make_model, make_optimizer, make_plan, make_sparsifier, read_facts
from st3.config import Config
from st3.describe import describe_layers, describe_recipe, describe_result, summarize
from st3.measure import SparsityMeter, layer_macs, layer_table
from st3.report import draw_run
from st3.training.checkpoints import save_json, save_network
from st3.training.ema import RawAverage
from st3.training.loop import fit, seed_everything
from st3.training.precision import pick_device, pick_precision
from st3.training.run_directory import RunDirectory, RunRecorder, environment
from st3.training.state import TrainingState


def run(config: Config, overrides: list[str], default_dir: Path) -> dict | None:
    """Train as `config` says, in `config.run_dir` or `default_dir`; a folder with an unfinished part is continued.

    Returns the summary, or None for a dry run. Raises `UserError` for what the user can mend.
    """
    device = pick_device(config.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # what asks for "the current device" shall mean this one
    precision = pick_precision(config.precision, device)
    facts = read_facts(config)
    plan = make_plan(config, facts)

    with torch.device("meta"):  # shapes only: a dry run allocates nothing
        sketch = make_model(config, facts)
    macs = layer_macs(sketch, (config.dataset.channels, config.dataset.image_size, config.dataset.image_size))
    sketched = make_sparsifier(config, plan, sketch, macs).attach(make_optimizer(config, sketch))
    rows = layer_table(sketched.layers(), macs)
    print(describe_recipe(config, facts, plan, precision, sketched.method, rows), flush=True)
    if config.dry_run:
        print(f"\n{describe_layers(rows)}")
        return None

    directory = RunDirectory(Path(config.run_dir)) if config.run_dir else RunDirectory(default_dir, fresh=True)
    directory.check(asdict(config))
    if summary := directory.finished():
        print(f"\n{directory.path} holds this run already, finished:\n{describe_result(summary)}")
        return summary

    torch.compiler.reset()  # jobs of a sweep share the process
    seed_everything(config.seed, 0)
    model = make_model(config, facts).to(device, memory_format=torch.channels_last)
    data = make_data(config, device)
    optimizer = make_optimizer(config, model)
    sparsifier = make_sparsifier(config, plan, model, macs).attach(optimizer)
    average = RawAverage(model, sparsifier, config.ema) if config.ema else None
    state = TrainingState(model, optimizer, sparsifier, precision.scaler(), average)
    if directory.resume(state):
        print(f"continuing {directory.path} after epoch {state.epoch}", flush=True)
    directory.start(asdict(config), overrides, environment(device, st3.__version__))
    if config.compile:
        model.compile()

    def layer_rows():
        return layer_table(sparsifier.layers(), macs)

    def summary():
        return summarize(config, state, layer_rows(), directory.path)

    recorder = RunRecorder(
        directory, state, total_steps=plan.total_steps, epochs=plan.epochs, layer_rows=layer_rows, summary=summary
    )
    try:
        fit(state, data, plan, precision, recorder, SparsityMeter(sparsifier, macs))
    except KeyboardInterrupt:
        again = [o for o in overrides if not o.startswith("run_dir=")] + [f"run_dir={directory.path}"]
        print(f"\ninterrupted; to continue: st3-train {shlex.join(again)}", flush=True)
        raise
    finally:
        recorder.close()
    if average:
        average.finish()

    directory.write_layers(layer_rows())
    metadata = {"model": config.model.name, "classes": json.dumps(data.classes), "st3": st3.__version__}
    save_network(directory.path / "model.safetensors", model.state_dict(), metadata)
    save_json(directory.path / "summary.json", summary() | {"finished": False})
    draw_run(directory.path)
    save_json(directory.path / "summary.json", summary() | {"finished": True})  # last: all the rest is there
    print(f"\n{describe_result(summary())}", flush=True)
    return summary()
