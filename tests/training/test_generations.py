"""Two generations of a run's state: which is read, whatever happens to the files, and what a crash leaves."""

import random
import shutil
import socket

import pytest
import torch

from st3.errors import DamagedError, DiskError
from st3.training import generations as module
from st3.training.generations import Generations


def state(step: int) -> dict:
    return {"step": step, "model": {"weight": torch.full((40, 30), float(step))}}


def two(folder) -> Generations:
    """Of steps 10 and 20."""
    kept = Generations(folder)
    kept.write(state(10), {"top1": 10}, "ten")
    kept.write(state(20), None, "twenty")
    return kept


def read(folder) -> tuple[int, str, int]:
    generation, _ = Generations(folder).newest()
    assert torch.equal(generation.state["model"]["weight"], state(generation.state["step"])["model"]["weight"])
    return generation.state["step"], generation.metrics, torch.load(generation.best)["top1"]


def test_none_is_none(tmp_path):
    assert not Generations(tmp_path / "none").exist()
    assert Generations(tmp_path / "none").newest() == (None, [])


def test_the_newest_is_read_and_two_are_kept(tmp_path):
    kept = two(tmp_path)
    assert read(tmp_path) == (20, "twenty", 10)  # the best network is still that of the first
    kept.write(state(30), {"top1": 30}, "thirty")
    assert read(tmp_path) == (30, "thirty", 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


FAULTS = {
    "a bit": lambda content: bytes([*content[:50], content[50] ^ 4, *content[51:]]),
    "a page": lambda content: content[:4] + b"\0" * 4096 + content[4100:],
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "{}": lambda content: b"{}",
}


@pytest.mark.parametrize("fault", [*FAULTS, "gone"])
@pytest.mark.parametrize("name", ["state.pt", "metrics.csv", "best.pt", "manifest.json"])
def test_of_a_damaged_one_is_told_and_the_one_before_is_read(tmp_path, name, fault):
    two(tmp_path)
    path = tmp_path / "2" / name
    if fault == "gone":
        path.unlink()
    else:
        content = path.read_bytes().ljust(60, b" ") if name == "metrics.csv" else path.read_bytes()
        path.write_bytes(FAULTS[fault](content))
    generation, [told] = Generations(tmp_path).newest()
    assert (generation.state["step"], generation.metrics) == (10, "ten")
    assert str(tmp_path / "2") in told
    assert Generations(tmp_path).damage() == [told]
    kept = Generations(tmp_path)
    kept.newest()
    kept.write(state(15), None, "fifteen")  # the damaged one makes room, not the one that is whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
    assert read(tmp_path) == (15, "fifteen", 10)


def test_where_none_is_whole_nothing_begins_again_without_a_word(tmp_path):
    two(tmp_path)
    for number in "12":
        (tmp_path / number / "state.pt").write_bytes(b"PK")
    with pytest.raises(DamagedError, match=r"2/state\.pt has 2 bytes, not .*no other checkpoint: remove .* to begin"):
        Generations(tmp_path).newest()


def test_no_flipped_bit_is_ever_loaded(tmp_path):
    """2,000 of them in docs/reliability.md."""
    two(tmp_path)
    draw = random.Random(0)
    for _ in range(60):
        path = tmp_path / "2" / draw.choice(["state.pt", "metrics.csv", "best.pt", "manifest.json"])
        content = path.read_bytes()
        place = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        generation, told = Generations(tmp_path).newest()
        assert (generation.state["step"], len(told)) == (10, 1)
        path.write_bytes(content)


@pytest.mark.parametrize("stop_after", range(6))
def test_a_crash_at_any_moment_leaves_the_ones_before(tmp_path, stop_after, monkeypatch):
    """Whatever call that changes the disk is the last one: the process is gone then, and cleans up nothing."""
    two(tmp_path)
    calls = iter(range(100))

    def stopping(original):
        def call(*arguments, **options):
            if next(calls) >= stop_after:
                raise SystemExit
            return original(*arguments, **options)

        return call

    for name in ("save_checkpoint", "write_text", "sync_folder"):
        monkeypatch.setattr(module, name, stopping(getattr(module, name)))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **o: None)
    try:
        Generations(tmp_path).write(state(30), {"top1": 30}, "thirty")
    except SystemExit:
        assert read(tmp_path) in ((20, "twenty", 10), (30, "thirty", 30))
    else:
        assert read(tmp_path) == (30, "thirty", 30)


@pytest.mark.parametrize("name", ["manifest.json", "state.pt", "metrics.csv"])
@pytest.mark.parametrize("of", ["/proc/self/mem", "socket", "/dev/zero"])
def test_a_disk_that_does_not_give_a_file_back_has_the_checkpoint_of_before(tmp_path, name, of, monkeypatch):
    """/proc/self/mem is a file that can be opened and not read."""
    two(tmp_path)
    path = tmp_path / "2" / name
    path.unlink()
    if of == "socket":
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
    else:
        path.symlink_to(of)
    assert read(tmp_path) == (10, "ten", 10)
    assert len(Generations(tmp_path).damage()) == 1


def test_a_full_disk_is_told_with_what_is_needed_and_leaves_no_part(tmp_path, monkeypatch):
    kept = two(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"No space left on device: [\d,.]+ MB are free there, about 0\.0 MB"):
        kept.write(state(30), None, "thirty")
    monkeypatch.undo()
    assert read(tmp_path) == (20, "twenty", 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    kept.write(state(30), None, "thirty")
    assert read(tmp_path) == (30, "thirty", 10)


def test_a_damaged_best_network_does_not_become_the_truth(tmp_path):
    kept = two(tmp_path)
    path = tmp_path / "2" / "best.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    kept.write(state(30), None, "thirty")
    told = Generations(tmp_path).damage()
    assert len(told) == 2
    assert all("best.pt is damaged" in each for each in told)


def test_the_folder_of_a_run_that_is_gone_is_not_made_anew(tmp_path):
    kept = Generations(tmp_path / "run" / "checkpoints")
    with pytest.raises(DiskError, match=r"cannot write .*checkpoints/1: No such file or directory"):
        kept.write(state(10), None, "ten")
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_generation_is_left_alone(tmp_path):
    """checkpoints/ may lead to a folder of something else."""
    others = [tmp_path / "notes", tmp_path / ".hidden", tmp_path / "2024-thesis"]
    for other in others:
        other.mkdir()
    leftover = tmp_path / ".7.partial"
    leftover.mkdir()
    two(tmp_path)
    assert all(other.exists() for other in others)
    assert not leftover.exists()
