"""A table inside a text that somebody writes by hand: what stands between two marks is replaced, nothing else."""

from pathlib import Path

from st3.errors import UserError, one_line
from st3.whole_files import write_text


def around_block(document: Path, table: str) -> tuple[str, str]:
    """The text up to and with the mark that begins the block of `table`, and from the mark that ends it on.

    Raises `UserError` for a document that cannot be read, or in which the marks are not, or not once each.
    """
    begin, end = (f"<!-- {word} st3 reproduce {table} -->" for word in ("BEGIN", "END"))
    try:
        text = document.read_bytes().decode()  # not read_text, which would change the line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--write {document} cannot be read ({one_line(error)})") from error
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"--write {document}: mark once where the table belongs, by the lines {begin} and {end}")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


def write_block(document: Path, table: str, block: str) -> None:
    """Put Markdown between the marks of `table`. Raises `UserError` as `around_block` does."""
    before, after = around_block(document, table)
    text = f"{before}\n\n{block}\n{after}"
    write_text(document, text)
