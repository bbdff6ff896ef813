"""Where what is compiled is kept."""

import os

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from st3.run import keep_compiled_code

NAME = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv(NAME, "")  # so that it is put back
    monkeypatch.delenv(NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("pytorch_has_chosen", [False, True])
def test_compiled_code_is_kept_among_the_users_caches(tmp_path, monkeypatch, pytorch_has_chosen):
    if pytorch_has_chosen:
        monkeypatch.setenv(NAME, default_cache_dir())
    keep_compiled_code()
    assert os.environ[NAME] == str(tmp_path / "st3" / "compiled")
    assert (tmp_path / "st3" / "compiled").is_dir()


def test_a_place_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv(NAME, "/elsewhere")
    keep_compiled_code()
    assert os.environ[NAME] == "/elsewhere"


def test_where_nothing_can_be_written_pytorch_chooses(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled_code()
    assert NAME not in os.environ
