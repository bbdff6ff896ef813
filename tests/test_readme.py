"""What the README and the documents beside it show works as typed."""

import argparse
import re
import shlex
from importlib import import_module
from io import BytesIO
from pathlib import Path

import pytest
from command_cases import TINY, st3_train
from config_cases import load
from PIL import Image
from safetensors.torch import save_file

from st3.cli import VERBS, main
from st3.models import build_model
from st3.training.run_directory import RunDirectory

README = Path(__file__).parents[1] / "README.md"
DOCUMENTS = [README, *sorted(README.parent.glob("docs/*.md"))]
ELSEWHERE = "-sc", "hydra/launcher"  # in a shell, on Slurm


def blocks(language: str, path: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(pattern: str) -> list[str]:
    """What follows `pattern` in the shell commands that are shown."""
    text = "\n".join(block for path in DOCUMENTS for block in blocks("bash", path))
    lines = (" ".join(line.split("  #")[0].split()) for line in text.replace("\\\n", " ").splitlines())
    found = (re.search(rf"(?:^|\s|\"){pattern} ([^\"]+)", line) for line in lines)
    return list(dict.fromkeys(match[1] for match in found if match))


TRAININGS = [words for words in commands(r"(?:st3-train|-m st3\.train)") if "=" in words]


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(compile(block, str(README), "exec"), {})
    zeros, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", capsys.readouterr().out)[:2])
    assert abs(zeros - 0.9 * total) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [words for words in TRAININGS if not any(each in words for each in ELSEWHERE)])
def test_trainings_compose_and_plan(command, tmp_path, monkeypatch):
    # A dry run of each, with a folder of two classes for DIR, and what it starts from.
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "jpeg")
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "DIR" / split / label
            folder.mkdir(parents=True)
            for number in range(128):
                (folder / f"{number}.jpg").write_bytes(picture.getvalue())
    monkeypatch.chdir(tmp_path)
    starts = ["outputs/first"] if "outputs/first" in command else []
    for name in re.findall(r"model\.weights='(outputs/\w+)/\$\{seed\}'", command):
        starts += [f"{name}/{seed}" for seed in range(5)]
    for start in starts:
        run = RunDirectory(Path(start))
        run.claim()
        run.start(load("sparsity=0.8").plain(), [], {})
        run.release()
        run.write_network(build_model("resnet20", classes=10, channels=1, image_size=28).state_dict(), {})
    if "resnet50.safetensors" in command:
        save_file(build_model("resnet50", classes=1000).state_dict(), "resnet50.safetensors")
    answer = st3_train(*shlex.split(command), "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    assert "prunable weights" in answer.out


@pytest.mark.parametrize("command", commands("st3"))
def test_other_verbs_know_their_options(command):
    verb, *rest = shlex.split(command)
    parser = argparse.ArgumentParser(verb, exit_on_error=False)
    import_module(VERBS[verb]).add_arguments(parser)
    parser.parse_intermixed_args(rest)


USES = [words for words in commands("st3") if words.startswith(("eval ", "predict "))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a tiny run is at outputs/first, pictures in pictures/, and images of its classes in DIR/."""
    place = tmp_path_factory.mktemp("place")
    assert st3_train(*TINY, f"run_dir={place / 'outputs' / 'first'}", "epochs=1").code in (0, 1)  # 1: it knows nothing
    pictures = [place / "pictures" / name for name in ("boot.png", "shirt.png")]
    for path in [*pictures, *(place / "DIR" / str(label) / "0.png" for label in range(7))]:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9)).save(path)
    return place


@pytest.mark.parametrize("command", USES)
def test_what_uses_a_run_does(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(shlex.split(command)) == 0
    assert "top-1 " in (out := capsys.readouterr().out) or "pictures/boot.png" in out


def test_a_network_is_used_in_python(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (block,) = blocks("python", README.parent / "docs" / "runs.md")
    exec(compile(block, "docs/runs.md", "exec"), {})
    assert capsys.readouterr().out.strip() in map(str, range(7))


def test_the_commands_are_found():
    assert len(TRAININGS) > 8
    assert len(USES) > 4
    assert any("recipe=imagenet_resnet50 dataset.root=DIR" in words for words in TRAININGS)
    assert commands("st3")
