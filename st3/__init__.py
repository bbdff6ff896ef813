"""st3: train an image classifier and make it sparse in the same training cycle."""

from st3.errors import UserError
from st3.sparsify import Sparsifier

__all__ = ["Sparsifier", "UserError"]
__version__ = "0.1.0"
