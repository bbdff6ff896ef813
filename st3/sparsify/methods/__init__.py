"""The methods by name: one file each, with the equations it was written from."""

from st3.sparsify.method import Method
from st3.sparsify.methods.acdc import ACDC
from st3.sparsify.methods.dense import Dense
from st3.sparsify.methods.feather import Feather
from st3.sparsify.methods.gmp import GMP
from st3.sparsify.methods.granet import GraNet
from st3.sparsify.methods.probmask import ProbMask
from st3.sparsify.methods.rigl import SET, RigL
from st3.sparsify.methods.st3 import ST3, HardSTE, ST3Sigma
from st3.sparsify.methods.str_ import STR
from st3.sparsify.methods.topkast import TopKAST

METHODS: dict[str, type[Method]] = {
    each.name: each
    for each in (ST3, ST3Sigma, HardSTE, GMP, Feather, STR, ProbMask, RigL, SET, GraNet, ACDC, TopKAST, Dense)
}
