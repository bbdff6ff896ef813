"""A block of Markdown between its marks in a file that somebody writes by hand."""

import re
from pathlib import Path

import pytest

from st3.errors import UserError
from st3.report.document import write_block

BEGIN, END = "<!-- BEGIN st3 reproduce mine -->", "<!-- END st3 reproduce mine -->"
OTHER = "<!-- BEGIN st3 reproduce mine_too -->\nof another table\n<!-- END st3 reproduce mine_too -->"


@pytest.mark.parametrize("inside", ["\n", "\n\nan older table\n\n", ""])
def test_what_stands_between_the_marks_is_replaced_and_nothing_else(inside, tmp_path):
    before, after = f"# Mine\r\n\r\ntabs\t, a σ, no end of line\n{OTHER}\n", f"\n\n{OTHER.lower()}\nthe end"
    file = tmp_path / "results.md"
    file.write_bytes(f"{before}{BEGIN}{inside}{END}{after}".encode())
    write_block(file, "mine", "| a | ± |\n")
    first = file.read_bytes()
    assert first.decode() == f"{before}{BEGIN}\n\n| a | ± |\n\n{END}{after}"
    write_block(file, "mine", "| a | ± |\n")
    assert file.read_bytes() == first
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text",
    ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}", f"{BEGIN}\n{BEGIN}\n{END}", OTHER],
    ids=["none", "no end", "no begin", "the wrong way round", "twice", "begun twice", "another's"],
)
def test_marks_that_do_not_hold_one_place_are_refused(text, tmp_path):
    file = tmp_path / "results.md"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        write_block(file, "mine", "a table")
    assert str(caught.value) == f"--write {file}: mark once where the table belongs, by the lines {BEGIN} and {END}"
    assert file.read_text() == text


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--write .*nowhere\.md cannot be read"):
        write_block(tmp_path / "nowhere.md", "mine", "")
    (tmp_path / "latin.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"--write .*latin\.md cannot be read"):
        write_block(tmp_path / "latin.md", "mine", "")


def test_every_mark_in_the_documents_has_its_other_half():
    for path in (Path(__file__).parents[2] / "docs").glob("*.md"):
        marks = re.findall(r"<!-- (BEGIN|END) st3 reproduce (\S+) -->", path.read_text(encoding="utf-8"))
        names = [name for _, name in marks[::2]]
        assert marks == [(word, name) for name in names for word in ("BEGIN", "END")]
        assert len(set(names)) == len(names)
