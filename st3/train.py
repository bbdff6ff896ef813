"""The one entry point, `st3-train` or `python -m st3.train`: compose → check → build → fit → summary."""

import os
import re
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import st3
from st3.build import make_data, make_model, make_optimizer, make_plan, make_sparsifier, read_facts
from st3.config import Config, load_config, unknown_choice, unknown_setting
from st3.describe import describe_layers, describe_recipe, describe_result, summarize
from st3.errors import UserError
from st3.measure import SparsityMeter, layer_macs, layer_table
from st3.models import model_names
from st3.report import draw_run
from st3.training.checkpoints import save_json, save_network
from st3.training.ema import RawAverage
from st3.training.loop import fit, seed_everything
from st3.training.precision import pick_device, pick_precision
from st3.training.run_directory import RunDirectory, RunRecorder, environment, fresh_path
from st3.training.state import TrainingState


def run(config: Config, overrides: list[str], default_dir: Path) -> dict | None:
    """One run. Returns its summary, or None for a dry run. Raises `UserError` for what the user can mend."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    facts = read_facts(config)
    plan = make_plan(config, facts)
    input_shape = (config.dataset.channels, config.dataset.image_size, config.dataset.image_size)

    with torch.device("meta"):
        sketch = make_model(config, facts)
    macs = layer_macs(sketch, input_shape)
    sketched = make_sparsifier(config, plan, sketch, macs)
    rows = layer_table(sketched.layers(), macs)
    print(describe_recipe(config, facts, plan, precision, sketched.method, rows), flush=True)
    if config.dry_run:
        print(f"\n{describe_layers(rows)}")
        return None

    directory = RunDirectory(Path(config.run_dir) if config.run_dir else default_dir)
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
    if directory.resume(state, device):
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
    finally:
        recorder.close()
    if average:
        model.load_state_dict(average.network().state_dict())
    directory.write_layers(layer_rows())
    return finish(directory, config, facts, model, summary())


def finish(directory: RunDirectory, config: Config, facts, model: torch.nn.Module, summary: dict) -> dict:
    """Write the sparse network, the picture and, last, the summary that says the run is finished."""
    metadata = {"model": config.model.name, "dataset": config.dataset.name, "classes": str(facts.classes)}
    metadata |= {"sparsity": str(summary["sparsity"]), "st3": st3.__version__}
    save_network(directory.path / "model.safetensors", model.state_dict(), metadata)
    save_json(directory.path / "summary.json", summary | {"finished": False})
    draw_run(directory.path)
    save_json(directory.path / "summary.json", summary | {"finished": True})
    print(f"\n{describe_result(summary)}", flush=True)
    return summary


def main() -> None:
    """Console entry: Hydra composes, mistakes end in one line and exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    failed: list[UserError] = []

    @hydra.main(config_path=_config_path(), config_name="config", version_base="1.3")
    def job(composed: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        try:
            config = load_config(composed)
            run(config, list(hydra_config.overrides.task), _default_dir(config, hydra_config))
        except UserError as error:  # the other jobs of a sweep go on
            failed.append(error)
            _complain(error)

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        _complain(_in_one_line(error))
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with run_dir=… set to the run's folder continues it", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(2)


def _config_path() -> str:
    """The checkout's configs/ beside pyproject.toml, else the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    beside = (checkout / "pyproject.toml").exists() and (checkout / "configs").is_dir()
    return str((checkout if beside else package) / "configs")


def _default_dir(config: Config, hydra_config: DictConfig) -> Path:
    name = f"{config.model.name}-{config.dataset.name}-{config.method.name}-{config.target_sparsity:g}-s{config.seed}"
    name = re.sub(r"[^\w.=-]+", "_", name)
    if hydra_config.mode == RunMode.MULTIRUN:
        return fresh_path(Path(hydra_config.sweep.dir), name)
    return fresh_path(Path("outputs"), f"{datetime.now():%Y%m%d-%H%M%S}-{name}")


def _complain(message: object) -> None:
    print(f"st3-train: error: {message}", file=sys.stderr, flush=True)


def _in_one_line(error: Exception) -> str:
    """What Hydra's message means in terms of what was typed."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group == "model" and choice in model_names():
            return f"model={choice} has no file of its own: use model.name={choice}"
        return unknown_choice(group, choice, error.options)
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(match[1])
    return text


if __name__ == "__main__":
    main()
