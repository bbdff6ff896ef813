import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from st3.compose import config_path
from st3.errors import DamagedError, UserError
from st3.yaml_files import LARGEST, parse_yaml, read_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{key}: &{key} [*{before}, *{before}]\n" for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("path", sorted(Path(config_path()).rglob("*.yaml")), ids=lambda path: path.stem)
def test_it_reads_what_omegaconf_reads(path):
    assert read_yaml(path) == (OmegaConf.to_container(OmegaConf.load(path)) or None)


@pytest.mark.parametrize(
    "value",
    [1e-5, 1e300, 0, -3, "1e-3", "1:30", "2020-01-01", "on", "0123456789", "12e6", None, True, "<<", "a\nb"],
)
def test_what_omegaconf_writes_comes_back(value):
    text = OmegaConf.to_yaml(OmegaConf.create({"key": value}))
    assert parse_yaml(text.encode(), "file") == {"key": value}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, "line 1: anchors (&) and aliases (*)"),
        ("a: *b", "anchors (&) and aliases (*)"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags (!)"),
        ("a: !!binary aGk=", "tags (!)"),
        ("[" * 1000 + "]" * 1000, "more than 32 lists"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1000)), "more than 32 lists"),
        ("[" + "a," * 200_000 + "]", "more than 100,000 values"),
        ("a" * (LARGEST + 1), "larger than 1,048,576 bytes"),
        ("a: " + "1" * 10_000, "Exceeds the limit"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2: c is there twice"),
        ("a: 1\na: 1", "a is there twice"),
        ("a: [", "line 2"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("[a]: 1\n? {b: 1}\n: 2", "unhashable"),
        ("a: \0", "control characters"),
        (b"a: \xff", "utf-8"),
    ],
)
def test_what_is_hostile_ends_soon_in_one_line(content, says):
    began = time.monotonic()
    with pytest.raises(DamagedError) as error:
        parse_yaml(content if isinstance(content, bytes) else content.encode(), "table.yaml")
    assert time.monotonic() - began < 5
    assert str(error.value).startswith("cannot read table.yaml: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_file_that_is_not_there_is_a_mistake_of_usage_and_an_endless_one_is_not_read(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml \(No such file"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(DamagedError, match="larger"):
        read_yaml(Path("/dev/zero"))
