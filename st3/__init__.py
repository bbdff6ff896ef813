"""st3: train an image classifier and make it sparse in the same training cycle."""

from typing import TYPE_CHECKING

from st3.errors import UserError

if TYPE_CHECKING:
    from st3.deploy.network import load
    from st3.sparsify import Sparsifier

__all__ = ["Sparsifier", "UserError", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Importing PyTorch takes seconds, which the command's --help and completion need not wait for.
    if name == "Sparsifier":
        from st3.sparsify import Sparsifier

        return Sparsifier
    if name == "load":
        from st3.deploy.network import load

        return load
    raise AttributeError(f"module 'st3' has no attribute {name!r}")
