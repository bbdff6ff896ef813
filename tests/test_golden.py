"""What every option, recipe and documented command resolves to, and the weights that every method trains.

`tests/golden/*.json` hold both as they were when they were last meant to change:

    python tests/test_golden.py    writes them anew; the difference belongs into the commit message
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st3.compose import config_path

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
CONFIGS = Path(config_path())

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=20", "dataset.classes=7",
    "batch_size=16", "epochs=4", "log_every=3", "sparsity=0.8", "precision=fp32", "device=cpu",
]  # fmt: skip
"""24 optimizer steps."""

METHODS = {
    "st3": "", "st3_sigma": "", "hard_ste": "", "dense": "", "gmp": "method.every=4st", "feather": "schedule.start=0",
    "str": "schedule=constant method.threshold_init=-4", "rigl": "schedule=constant method.every=4st",
    "set": "schedule=constant method.every=4st", "granet": "schedule=cubic method.every=4st", "acdc": "schedule=acdc",
    "topkast": "schedule=constant", "probmask": "schedule=probmask",
}  # fmt: skip


# Plans ----------------------------------------------------------------------------------------------------------------


def commands() -> dict[str, list[str]]:
    """Name to overrides: every option of every group, every recipe, every training command that the documents show."""
    paths = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS)
    options = [f"{path.parts[0]}={Path(*path.parts[1:]).with_suffix('').as_posix()}" for path in paths]
    found = {"": [], **{option: [option] for option in options}}
    found |= {f"method={name} {words}".strip(): [f"method={name}", *words.split()] for name, words in METHODS.items()}
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            line = " ".join(line.split("  #")[0].split())
            if match := re.search(r"(?:st3-train|-m st3\.train) (.*)", line):
                settings = [*TINY, f"method={method}", *METHODS[method].split(), f"run_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "st3.train", *settings], check=True, capture_output=True, env=environment)
    tensors = load_file(folder / "model.safetensors")
    state = torch.load(folder / "last.pt", weights_only=True)
    raw = {f"raw.{name}": weight for name, weight in state["sparsifier"]["raw"].items()}
    digest = hashlib.sha256()
    for name, tensor in sorted((tensors | raw).items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {
        "sha256": digest.hexdigest(),
        "zeros": sum(int((w == 0).sum()) for name, w in tensors.items() if w.ndim > 1),
        "norms": {name: float(w.double().norm()) for name, w in tensors.items() if w.ndim > 1},
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_the_weights_of_before(method, tmp_path):
    """Bit for bit on the kind of machine that wrote the file; elsewhere within what rounding does in 24 steps."""
    found, expected = trained(method, tmp_path / "run"), stored("weights")[method]
    if machine() == stored("weights")["machine"]:
        assert found == expected
    assert found["zeros"] == pytest.approx(expected["zeros"], rel=0.01)
    assert found["norms"] == pytest.approx(expected["norms"], rel=0.02)


def write() -> None:
    import tempfile

    def dump(name: str, content: dict) -> None:
        lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
        (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    dump("plans", {name: resolved(name) for name in commands()})
    with tempfile.TemporaryDirectory() as folder:
        dump("weights", {"machine": machine()} | {name: trained(name, Path(folder, name)) for name in METHODS})


if __name__ == "__main__":
    write()
