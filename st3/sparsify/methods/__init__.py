"""The methods by name: one file each, with the equations it was written from."""

from st3.sparsify.methods.acdc import ACDC
from st3.sparsify.methods.dense import Dense
from st3.sparsify.methods.feather import Feather
from st3.sparsify.methods.gmp import GMP
from st3.sparsify.methods.granet import GraNet
from st3.sparsify.methods.probmask import ProbMask
from st3.sparsify.methods.rigl import RigL
from st3.sparsify.methods.st3 import ST3
from st3.sparsify.methods.str_ import STR
from st3.sparsify.methods.topkast import TopKAST

METHODS = {
    "st3": ST3(),
    "st3_sigma": ST3(layer_sigma=True),
    "hard_ste": ST3(shrink="hard", rescale=False),
    "gmp": GMP(),
    "feather": Feather(),
    "str": STR(),
    "probmask": ProbMask(),
    "rigl": RigL(),
    "set": RigL(growth="random"),
    "granet": GraNet(),
    "acdc": ACDC(),
    "topkast": TopKAST(),
    "dense": Dense(),
}
