"""What the README and the documents beside it show works as typed."""

import re
from pathlib import Path

import pytest

from st3.train import main

README = Path(__file__).parents[1] / "README.md"
DOCUMENTS = [README, *sorted(README.parent.glob("docs/*.md"))]


def blocks(language: str, path: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(block for path in DOCUMENTS for block in blocks("bash", path))
    lines = [line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    elsewhere = "-sc", "hydra/launcher"  # in a shell, on Slurm
    return [
        line
        for line in lines
        if line.startswith("st3-train ") and "=" in line and not any(each in line for each in elsewhere)
    ]


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(compile(block, str(README), "exec"), {})
    zeros, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", capsys.readouterr().out)[:2])
    assert abs(zeros - 0.9 * total) <= 1


@pytest.mark.parametrize("command", commands())
def test_commands_compose_and_plan(command, tmp_path, monkeypatch, capsys):
    # A dry run of each, with a folder of two classes for DIR.
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "DIR" / split / label
            folder.mkdir(parents=True)
            for number in range(128):
                (folder / f"{number}.jpg").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [*command.split(), "dry_run=true"])
    main()
    assert "prunable weights" in capsys.readouterr().out
