"""From a run to its network: what the file says, what `st3.load` does, and what is said of other files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deploy_cases import FOLDER, trained, tree
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

import st3
from st3.data import build_data
from st3.deploy.card import Card
from st3.models import ModelConfig
from st3.training.run_directory import RunDirectory

CARD = Card(
    model=ModelConfig(name="wide_resnet", depth=10, width=1, dropout=0.1, bn_eps=1e-3),
    classes=("ä", "b"), channels=1, image_size=28, mean=(0.1,), std=(0.3,), view="whole", sparsity=0.8,
    sparsity_target=0.8, target="flops",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "first", "model=mobilenet_v3_small", "dataset.image_size=32")


@pytest.fixture
def copy(run, tmp_path):
    """A lone file of the same network with other metadata."""

    def write(metadata: dict[str, str]) -> Path:
        save_file(load_file(run / "model.safetensors"), tmp_path / "model.safetensors", metadata)
        return tmp_path / "model.safetensors"

    return write


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def message(source) -> str:
    with pytest.raises(st3.UserError) as caught:
        st3.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_card_is_read_back_as_it_was_written():
    assert Card.read(CARD.metadata(), "FILE") == CARD
    assert Card.read({"model": "resnet20", "classes": "[]"}, "FILE") is None
    assert json.loads(CARD.metadata()["classes"]) == ["ä", "b"]


def test_where_training_started_is_not_part_of_the_network():
    started = replace(CARD, model=replace(CARD.model, weights="pretrained", init="kaiming_normal"))
    assert Card.read(started.metadata(), "FILE") == CARD


def test_the_network_is_the_one_that_was_trained(run):
    model = st3.load(run)
    assert not model.training
    assert model.classes == tuple("0123456")
    assert model.features[0][0].stride == (1, 1)  # the stem for small images, which torchvision's own has not
    saved = load_file(run / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert json.loads(metadata(run / "model.safetensors")["network"])["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_loading_draws_nothing_from_the_global_generator(run):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    st3.load(run)
    assert torch.equal(torch.rand(3), expected)


def test_a_file_is_enough_wherever_it_lies(run, copy):
    one, other = st3.load(copy(metadata(run / "model.safetensors"))), st3.load(run / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(one(images), other(images))


def test_the_best_network_of_a_run_is_loaded_by_its_file(run):
    saved = torch.load(run / "best.pt", weights_only=True)["model"]
    model = st3.load(run / "best.pt")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_run_of_before_is_described_by_its_settings(run, copy):
    old = copy({"model": "mobilenet_v3_small", "classes": json.dumps(list("tuvwxyz"))})
    assert "put it back into the folder of its run, beside config.yaml" in message(old)
    RunDirectory(old.parent).start(RunDirectory(run).config(), [], {})
    model = st3.load(old.parent)
    assert model.classes == tuple("tuvwxyz")
    assert model.features[0][0].stride == (1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["random_resized_crop", "crop"])
def test_preprocess_is_what_evaluation_does_to_a_file(augment, channels, tmp_path):
    root = tree(tmp_path / "data", ["train", "val"])
    words = [
        f"dataset.channels={channels}",
        *(f"dataset.{key}={[0.4, 0.5, 0.6][:channels]}" for key in ("mean", "std")),
    ]
    path = trained(tmp_path / "run", *FOLDER, f"dataset.root={root}", f"dataset.augment={augment}", *words, "epochs=1")
    from st3.config import stored_config

    config = stored_config(RunDirectory(path).config(), path)
    [(images, _)] = build_data(config.dataset, batch_size=6, seed=0, device="cpu").test.epoch(0)
    preprocess, files = st3.load(path).preprocess, sorted(root.glob("val/*/*"))
    assert torch.equal(torch.stack([preprocess(file) for file in files]), images)
    assert torch.equal(torch.stack([preprocess(Image.open(file)) for file in files]), images)
    if augment == "random_resized_crop":  # as torchvision says it
        usual = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
        image = Image.open(files[0]).convert("L" if channels == 1 else "RGB")
        statistics = torch.tensor([0.4, 0.5, 0.6][:channels])[:, None, None]
        assert torch.allclose((usual(image) - statistics) / statistics, images[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"image_size": -1}, "image_size=-1 must be at least 1"),
        ({"image_size": 0.5}, "image_size=0.5 must be a whole number"),
        ({"image_size": 10**9}, "must be at least 1 and at most 10000"),
        ({"channels": 10**9}, "channels=1000000000 is not supported"),
        ({"mean": []}, "mean has 0 numbers"),
        ({"mean": ["a", "b", "c"]}, "mean=a must be a number"),
        ({"std": [0, 0, 0]}, "must be positive"),
        ({"std": [float("inf")] * 3}, "std=inf must be a finite number"),
        ({"std": "text"}, "std=text must be a list"),
        ({"view": ["whole"]}, "view"),
        ({"sparsity": "text"}, "sparsity=text must be a number"),
        ({"model": {"name": "wide_resnet", "depth": "text"}}, "depth=text must be a whole number"),
        ({"model": {"name": "resnet20", "code": "x"}}, "unexpected keyword argument"),
        ({"model": None}, "cannot read"),
        ({"more": 1}, "unexpected keyword argument"),
    ],
)
def test_a_description_of_what_cannot_be_is_refused(copy, run, changed, says):
    known = metadata(run / "model.safetensors")
    said = message(copy(known | {"network": json.dumps(json.loads(known["network"]) | changed)}))
    assert "has a description that st3" in said
    assert says in said


@pytest.mark.parametrize("classes", ["[" * 100_000, '"text"', "[[1]]", "{}", "[]"])
def test_classes_that_have_no_names_are_refused(copy, run, classes):
    assert "that st3" in message(copy(metadata(run / "model.safetensors") | {"classes": classes}))


def test_no_memory_is_taken_for_a_network_that_is_not_in_the_file(copy, run, monkeypatch):
    """A description can ask for 16 GB of weights."""
    monkeypatch.setattr("st3.deploy.network.read_file", lambda *_, **__: pytest.fail("the weights were read"))
    known = metadata(run / "model.safetensors")
    huge = json.loads(known["network"]) | {"model": {"name": "wide_resnet", "depth": 28, "width": 40}}
    assert "does not fit the network: lacks" in message(copy(known | {"network": json.dumps(huge)}))


@pytest.mark.parametrize("kind", ["FIFO", "/dev/zero"])
def test_what_would_never_end_is_not_read(tmp_path, kind):
    for name in ("model.safetensors", "model.safetensors.gz", "model.pt"):
        path = tmp_path / name
        if kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to(kind)
        assert "it is no file" in message(path) or "does not say what it is" in message(path)
        path.unlink()


def test_what_is_no_network_is_said_in_a_line(run, copy, tmp_path):
    known = metadata(run / "model.safetensors")
    assert "nowhere does not exist: give the folder of a finished run" in message("nowhere")
    assert "model.safetensors does not exist" in message(tmp_path)
    assert "is a training that may go on, not a network to use" in message(run / "last.pt")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "last.pt").touch()
    assert f"finish it with st3-train run_dir={tmp_path / 'half'}" in message(tmp_path / "half")
    (tmp_path / "damaged.safetensors").write_bytes(b"12345678{}")
    assert "is no safetensors file, or damaged" in message(tmp_path / "damaged.safetensors")
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG")
    assert "does not say what it is a network for" in message(tmp_path / "picture.pt")
    assert "does not say what it is a network for" in message(copy({}))
    assert "cannot read" in message(copy(known | {"network": "{"}))
    later = json.loads(known["network"]) | {"view": "fisheye"}
    assert "which wrote it" in message(copy(known | {"network": json.dumps(later)}))
    assert "does not fit the network: lacks" in message(
        copy(replace(CARD, channels=3, mean=(0.1,) * 3, std=(0.3,) * 3).metadata())
    )
    assert "is not for 2 classes" in message(copy(known | {"classes": '["a", "b"]'}))
    with pytest.raises(st3.UserError, match="device=gpu is not known"):
        st3.load(run, device="gpu")
