"""`st3 export`: what is in the files, that they run without st3, and that a wrong one is never called written."""

import gzip
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_cases import refused, st3_, trained
from safetensors import safe_open
from safetensors.torch import load_file
from synthetic_network import synthetic
from torch import nn

import st3
from st3.deploy.exporting import compare, export, reference_logits
from st3.deploy.formats import FORMATS
from st3.deploy.formats.format import Format
from st3.deploy.network import load_trained
from st3.deploy.pixel_program import PixelNetwork, pixel_program, program_weights
from st3.errors import UserError
from st3.sparsify import weight_layers

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The file of a network of random weights, 80 % zeros, made once."""
    folder = tmp_path_factory.mktemp("networks")

    def make(model: str) -> Path:
        path = folder / f"{model.replace('/', '_')}.safetensors"
        if not path.exists():
            synthetic(path, model, 0.8)
        return path

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose network is not constant."""
    path = trained(tmp_path_factory.mktemp("runs") / "run", "sparsity=0.8", "epochs=2", "optimizer.lr=0.01")
    return path


def zeros(path: Path) -> dict[str, int]:
    return {name: int((w == 0).sum()) for name, w in weight_layers(load_trained(path, CPU).model).items()}


def pixels(card, images: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.random((images, card.channels, card.image_size, card.image_size), np.float32)


def test_the_normalization_is_inside_and_batch_norm_is_folded_without_losing_a_zero(networks):
    ours = load_trained(networks("resnet20"), CPU)
    card = replace(ours.card, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    program = pixel_program(replace(ours, card=card))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.conv2d.default" in targets
    assert not any("batch_norm" in target for target in targets)
    x = torch.from_numpy(pixels(card, 5))  # a size that it was not traced with
    normalised = (x - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), ours.model(normalised), rtol=1e-5, atol=1e-5)
    for name, folded in program_weights(program, ours.model).items():
        assert torch.equal(folded == 0, weight_layers(ours.model)[name] == 0)
    assert all(torch.equal(before[name], value) for name, value in ours.model.state_dict().items())


def test_a_batch_norm_behind_something_else_stays(networks):
    ours = load_trained(networks("wide_resnet"), CPU)  # BatchNorm in front of its convolutions, too
    program = pixel_program(ours)
    norms = sum("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert 0 < norms < sum(isinstance(module, nn.BatchNorm2d) for module in ours.model.modules())
    x = torch.from_numpy(pixels(ours.card))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), PixelNetwork(ours.model, ours.card)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("resnet20", "onnx"), ("resnet20", "mnn"), ("resnet20", "torch"), ("mobilenet_v1", "mnn"), ("vit_tiny", "onnx"),
        ("vit_tiny", "torch"),
    ],
)  # fmt: skip
def test_a_file_gives_the_networks_logits_and_holds_its_zeros(networks, tmp_path, kind, model):
    source, folder = networks(model), tmp_path / "out"
    answer = st3_("export", source, "--format", kind, "--out", folder)
    assert (answer.code, answer.err) == (0, "")
    said = json.loads((folder / "export.json").read_text())
    assert {each["layer"]: each["zeros"] for each in said["layers"]} == zeros(source)
    assert said["largest_difference"] <= 1e-4
    ours = load_trained(source, CPU)
    assert said["classes"] == list(ours.card.classes)
    kernels = {each["kernel"] for each in said["layers"]}
    assert ("sparse" in kernels) == (kind == "mnn")
    files = [path for path in folder.iterdir() if path.name != "export.json"]
    assert said["bytes"] == sum(path.stat().st_size for path in files)
    assert said["bytes_gzip"] == sum(len(gzip.compress(path.read_bytes(), 9)) for path in files)
    x = pixels(ours.card)
    with torch.no_grad():
        wanted = PixelNetwork(ours.model, ours.card)(torch.from_numpy(x)).numpy()
    logits = FORMATS[kind]().open(folder / said["file"])(x)
    assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_attention_in_mnn_is_right_or_refused(networks, tmp_path):
    """Its softmax and GELU are approximations: 1e-6 to 1e-4 of the largest logit away, by network and processor."""
    answer = st3_("export", networks("vit_tiny"), "--format", "mnn", "--out", tmp_path / "out")
    if answer.code == 2:
        assert "the file is wrong: for a batch of " in answer.err
        assert answer.err.count("\n") == 1
    assert (tmp_path / "out").exists() == (answer.code == 0)


def test_an_onnx_file_tells_what_it_is_and_nothing_of_the_machine(networks, tmp_path):
    import onnx

    written = []
    for name in ("first", "second"):
        st3_("export", networks("resnet20"), "--out", tmp_path / name)
        written.append((tmp_path / name / "model.onnx").read_bytes())
    assert written[0] == written[1]
    for place in (Path.cwd(), Path(st3.__file__).parent, Path(torch.__file__).parents[1], tmp_path):
        assert str(place).encode() not in written[0]
    model = onnx.load(tmp_path / "first" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    props = {each.key: each.value for each in model.metadata_props}
    assert json.loads(props["classes"]) == [f"class {number}" for number in range(10)]
    [given], [taken] = model.graph.input, model.graph.output
    shape = given.type.tensor_type.shape.dim
    assert (given.name, taken.name) == ("pixels", "logits")
    assert shape[0].dim_param
    assert [each.dim_value for each in shape[1:]] == [3, 32, 32]
    assert "layer1.0.conv1" in {node.output[0] for node in model.graph.node}


def test_a_program_runs_without_st3(networks, tmp_path):
    assert st3_("export", networks("resnet20"), "--format", "torch", "--out", tmp_path / "out").code == 0
    code = """
import sys, torch
extra = {"classes": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
print(program.module()(torch.rand(3, 3, 32, 32)).shape, "class 0" in extra["classes"], "st3" in sys.modules)
"""
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out" / "model.pt2"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\n")[0] == "torch.Size([3, 10]) True False"


def test_core_ml_is_written_but_not_said_to_be_checked(networks, tmp_path):
    answer = st3_("export", networks("resnet20"), "--format", "coreml", "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    assert "not run" in answer.line("checked")
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["largest_difference"] is None
    assert {each["layer"]: each["zeros"] for each in said["layers"]} == zeros(networks("resnet20"))
    assert said["bytes"] < 0.35 * networks("resnet20").stat().st_size


def test_mnn_is_converted_without_another_process_and_without_the_network(networks, tmp_path, monkeypatch):
    FORMATS["mnn"]()  # what imports do is not what converting does
    import MNN  # noqa: F401

    def forbidden(*_, **__):
        raise AssertionError("converting must not do that")

    for module, name in ((subprocess, "Popen"), (socket, "socket"), (socket, "create_connection")):
        monkeypatch.setattr(module, name, forbidden)
    events = []

    def watch(event: str, arguments: tuple) -> None:
        if watching and event.startswith(
            ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
        ):
            events.append((event, arguments))

    watching = True
    sys.addaudithook(watch)  # what C code does by Python's own functions, too
    try:
        answer = st3_("export", networks("resnet20"), "--format", "mnn", "--out", tmp_path / "out")
    finally:
        watching = False
    assert answer.code == 0, answer
    assert events == []


def test_a_packed_network_is_loaded_bit_for_bit(run, tmp_path):
    answer = st3_("export", run, "--pack")
    assert answer.code == 0
    packed = run / "export" / "pack" / "model.safetensors.gz"
    assert gzip.decompress(packed.read_bytes()) == (run / "model.safetensors").read_bytes()
    ours = st3.load(packed)
    stored = load_file(run / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in ours.state_dict().items())
    with safe_open(run / "model.safetensors", "pt") as file:
        assert ours.classes == tuple(json.loads(file.metadata()["classes"]))
    listing = b'{"__metadata__": 5}'
    odd = gzip.compress(len(listing).to_bytes(8, "little") + listing)
    bomb = gzip.compress(gzip.decompress(packed.read_bytes()) + bytes(10**8))  # more than its header says
    for damaged in (packed.read_bytes()[:-2000], b"no gzip", gzip.compress(b"\xff" * 50), odd, bomb):
        (tmp_path / "bad.safetensors.gz").write_bytes(damaged)
        assert "bad.safetensors.gz" in refused(
            "export", tmp_path / "bad.safetensors.gz", "--out", tmp_path / "none", code=4
        )


def test_a_run_is_checked_on_its_own_images_and_exported_below_it(run):
    answer = st3_("export", run)
    assert answer.code == 0, answer
    assert answer.line("checked").startswith("4 test images of the run")
    assert (run / "export" / "onnx" / "model.onnx").exists()
    assert "exists" in refused("export", run)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(networks, tmp_path, monkeypatch):
    file, out = networks("resnet20"), tmp_path / "out"
    assert "--out" in refused("export", file)
    assert "--format mnn" in refused("export", file, "--pack", "--tune", "--out", out)
    assert "does not exist" in refused("export", tmp_path / "none.safetensors", "--out", out)
    (tmp_path / "last.pt").touch()
    assert "finish it" in refused("export", tmp_path, "--out", out)
    monkeypatch.setattr("st3.deploy.formats.format.find_spec", lambda name: None)
    assert "onnxruntime: pip install 'st3[export]'" in refused("export", file, "--out", out)
    assert "flatbuffers: pip install 'st3[mnn]'" in refused("export", file, "--format", "mnn", "--out", out)
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert "cannot be made" in refused("export", file, "--out", tmp_path / "file" / "out", code=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "last.pt"]


class Odd(nn.Module):
    """Has an operator in front of the network."""

    def __init__(self, network: nn.Module, operator):
        super().__init__()
        self.network, self.operator = network, operator

    def forward(self, x):
        return self.operator(self.network(x))


def without_onnx(logits):
    return torch.linalg.qr(logits.unsqueeze(2)).R.squeeze(2).repeat(1, 10) * logits


def by_value(logits):
    return logits if logits.sum() > 0 else 2 * logits


@pytest.mark.parametrize(
    ("operator", "message"),
    [(without_onnx, "does not convert to ONNX"), (by_value, "cannot be traced"), (torch.zeros_like, "are the same")],
)
def test_networks_that_do_not_convert(networks, tmp_path, operator, message):
    ours = load_trained(networks("resnet20"), CPU)
    odd = replace(ours, model=Odd(ours.model, operator).eval())
    with pytest.raises(UserError, match=message) as caught:
        export(odd, FORMATS["onnx"](), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Wrong(Format):
    """Writes a right file and then something else happens to it."""

    name, file, packages = "onnx", "model.onnx", ()

    def __init__(self, logits=lambda x: x, lose: int = 0):
        self.right, self.logits, self.lose = FORMATS["onnx"](), logits, lose

    def write(self, program, card, path):
        self.right.write(program, card, path)
        if self.lose:
            import onnx

            model = onnx.load(path)
            [weight] = [each for each in model.graph.initializer if each.name == "network.layer2.0.conv1.weight"]
            values = onnx.numpy_helper.to_array(weight).copy()
            places = np.flatnonzero(values == 0)[: self.lose]
            values.reshape(-1)[places] = 1e-12  # changes no logit
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
            onnx.save(model, path)

    def open(self, path, threads=1):
        network = self.right.open(path)
        return lambda x: self.logits(network(x))

    def weights(self, path):
        return self.right.weights(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Wrong(lose=1), r"layer layer2\.0\.conv1 has .* zeros and may have"),
        (Wrong(lambda x: 0 * x), "0 or NaN"),
        (Wrong(lambda x: x * np.float32("nan")), "0 or NaN"),
        (Wrong(lambda x: x[:1]), "batch of 4 its output has the shape"),
        (Wrong(lambda x: x * np.float32(1.0002)), "of the largest one away"),
        (Wrong(lambda x: np.where(len(x) > 1, np.roll(x, 1, 1), x)), "batch of 4"),
    ],
)
def test_a_wrong_file_is_never_written(networks, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        export(load_trained(networks("resnet20"), CPU), wrong, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_within_the_tolerance_is_measured(networks):
    ours = load_trained(networks("resnet20"), CPU)
    x = pixels(ours.card)
    right = reference_logits(ours, x)
    shift = np.float32(5e-5 * np.abs(right).max())
    one_by_one = iter(right[:, None])
    difference = compare(lambda images: right + shift if len(images) == 3 else next(one_by_one), x, right)
    assert difference == pytest.approx(5e-5, rel=0.05)


def test_a_full_disk_is_one_line_and_leaves_nothing(networks, tmp_path, small_disk):
    network = networks("resnet20")
    with small_disk(100_000):
        for words in (["--format", "onnx"], ["--format", "torch"], ["--pack"]):
            assert "cannot be written" in refused("export", network, *words, "--out", tmp_path / "out", code=6)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_is_wholly_zero_is_found_in_every_format(networks, tmp_path):
    ours = load_trained(networks("resnet20"), CPU)
    with torch.no_grad():
        weight_layers(ours.model)["layer1.1.conv2"].zero_()
    for kind in ("onnx", "mnn", "torch", "coreml"):
        found = export(ours, FORMATS[kind](), tmp_path / kind)
        assert {each.layer: each.zeros for each in found.layers}["layer1.1.conv2"] == 2304


def test_depthwise_layers_have_no_sparse_kernel(networks, tmp_path):
    found = export(load_trained(networks("mobilenet_v1"), CPU), FORMATS["mnn"](), tmp_path / "out")
    grouped = [name for name, m in load_trained(networks("mobilenet_v1"), CPU).model.named_modules()
               if isinstance(m, nn.Conv2d) and m.groups > 1]  # fmt: skip
    kernels = {each.layer: each.kernel for each in found.layers}
    assert {kernels[name] for name in grouped} == {"dense"}
    assert "sparse" in kernels.values()


def test_what_is_packed_must_be_a_network(tmp_path):
    (tmp_path / "junk.safetensors").write_text("junk")
    assert "damaged" in refused("export", tmp_path / "junk.safetensors", "--pack", "--out", tmp_path / "out", code=4)
    assert not (tmp_path / "out").exists()
