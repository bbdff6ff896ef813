"""Weights of files and of the zoos: what is read, what fits, what is said of the rest."""

import gzip
import json
import pickle
import zipfile
from urllib.error import URLError

import pytest
import torch
import torchvision
from model_cases import build, meta
from safetensors.torch import save_file

from st3.errors import DamagedError, UserError
from st3.models import ModelConfig
from st3.models.weights import check_published, published, put, read_file, read_header


def state(name="resnet20", classes=10, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build(name, classes=classes, **options).state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda values: values,
        lambda values: {"model": values, "epoch": 3},
        lambda values: {"state_dict": {f"module.{name}": value for name, value in values.items()}},
    ],
    ids=["a state dict", "below model", "below state_dict, of several GPUs"],
)
def test_what_torch_has_saved_is_read(wrap, tmp_path):
    values = state()
    torch.save(wrap(values), tmp_path / "w.pt")
    assert same(read_file(tmp_path / "w.pt"), values)


def test_safetensors_are_read(tmp_path):
    values = state()
    save_file(values, tmp_path / "w.safetensors")
    assert same(read_file(tmp_path / "w.safetensors"), values)


class Evil:
    def __reduce__(self):
        return print, ("code",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pt", pickle.dumps({"weight": Evil()}), "holds more than tensors, or is damaged"),
        ("w.pt", b"", "cannot be read"),
        ("w.safetensors", b"12345678{}", "cannot be read"),
    ],
)
def test_other_files_are_refused_and_run_nothing(name, content, says, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.weights=.*{name} {says}") as caught:
        read_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_what_is_compressed_is_not_unpacked(tmp_path):
    """It could be anything: of 100 kB 100 MB here."""
    torch.save(state(), tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as before,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    assert torch.load(tmp_path / "packed.pt", weights_only=True)  # PyTorch does
    with pytest.raises(DamagedError, match=r"packed\.pt cannot be read \(its parts are compressed"):
        read_file(tmp_path / "packed.pt")


@pytest.mark.parametrize("offsets", [[0, 8], [8, 4], [-4, 0], [0, 2**40]])
def test_a_packed_tensor_has_the_bytes_that_its_shape_needs(offsets, tmp_path):
    """Reading ends with the header, not with what could be unpacked."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    path = tmp_path / "w.safetensors.gz"
    path.write_bytes(gzip.compress(len(header).to_bytes(8, "little") + header + bytes(100)))
    with pytest.raises(DamagedError, match=r"a cannot lie from"):
        read_file(path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_a_header_is_read_whatever_the_numbers_are(dtype, tmp_path):
    save_file({"a": torch.ones(3, 5).to(dtype), "b": torch.ones(()).to(dtype)}, tmp_path / "w.safetensors")
    metadata, tensors = read_header(tmp_path / "w.safetensors")
    assert (metadata, {name: tuple(each.shape) for name, each in tensors.items()}) == ({}, {"a": (3, 5), "b": ()})


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    for content in ({"epoch": 3}, {}, torch.ones(3)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match="holds no state dict"):
            read_file(tmp_path / "w.pt")


def test_what_fits_is_loaded_also_without_numbers_of_batches():
    values, model = state(), build("resnet20", classes=10)
    assert put(model, {k: v for k, v in values.items() if "num_batches" not in k}, "it") == ""
    assert same(model.state_dict(), values)


@pytest.mark.parametrize(("name", "head"), [("resnet20", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_a_head_for_other_classes_starts_anew(name, head):
    values, model = state(name, classes=7), build(name, classes=10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert put(model, values, "it") == head
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key.startswith(f"{head}.") else values)[key])
    assert put(meta(name, classes=10), values, "it") == head


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda: state("resnet32"), r"also has layer1\.3\.conv1\.weight, .* and \d+ more$"),
        (lambda: {k: v for k, v in state().items() if k != "bn1.weight"}, r"lacks bn1\.weight$"),
        (lambda: state(channels=1), r"conv1\.weight is 16×1×3×3 there and 16×3×3×3 here$"),
        (lambda: state(classes=7, channels=1), r"conv1\.weight is .*, fc\.weight is 7×64 there and 10×64 here"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(values, says):
    model = build("resnet20", classes=10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for each in (model, meta("resnet20", classes=10)):
        with pytest.raises(UserError, match=rf"^model\.weights=it does not fit the network: {says}"):
            put(each, values(), "it")
    assert same(model.state_dict(), before)


# Published ones -------------------------------------------------------------------------------------------------------


def test_published_weights_are_asked_of_torchvision_by_name(monkeypatch):
    def get_model(name, weights):
        assert (name, weights) == ("googlenet", "DEFAULT")
        return torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    found = published(ModelConfig(name="googlenet"), channels=3, image_size=224)
    monkeypatch.undo()
    assert put(meta("googlenet", classes=10, image_size=224), found, "pretrained") == "fc"


@pytest.mark.parametrize("error", [URLError("no route"), OSError("read-only"), RuntimeError("invalid hash value")])
def test_without_internet_one_sentence_says_so(error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models, "get_model", fails)
    with pytest.raises(UserError, match=r"weights of resnet50 cannot be had \(.*\): connect to the internet once") as e:
        published(ModelConfig(name="resnet50"), channels=3, image_size=224)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["resnet20", "wrn34_2", "mobilenet_v1", "vgg16_bn"])
def test_our_own_networks_have_none(name):
    with pytest.raises(UserError, match=f"nobody publishes weights of {name}"):
        check_published(ModelConfig(name=name))
    check_published(ModelConfig(name="vit_b_16"))
