"""Core ML, for Apple's devices."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.deploy.formats.format import Format, Network, StoredWeight, quiet
from st3.errors import UserError, one_line

LARGEST_BATCH = 64
"""Core ML wants a bound."""


class CoreML(Format):
    """An ML program in float16, as its converter does by default, in which weights with many zeros are stored sparse.

    It is converted on any machine, and runs on Apple's only.
    """

    name: ClassVar = "coreml"
    file: ClassVar = "model.mlpackage"
    packages: ClassVar = (("coremltools", "coremltools"),)
    extra: ClassVar = "coreml"
    runs_here: ClassVar = False

    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        with quiet():
            import coremltools

            size = coremltools.RangeDim(1, LARGEST_BATCH, default=1)
            shape = size, card.channels, card.image_size, card.image_size
            try:
                model = coremltools.convert(
                    program.run_decompositions({}),
                    inputs=[coremltools.TensorType(name="pixels", shape=shape)],
                    outputs=[coremltools.TensorType(name="logits")],
                    pass_pipeline=coremltools.PassPipeline.DEFAULT_PRUNING,
                    minimum_deployment_target=coremltools.target.iOS17,
                )
            except (RuntimeError, ValueError, NotImplementedError, KeyError) as error:
                raise UserError(f"{card.model.name} does not convert to Core ML: {one_line(error)}") from error
            model.user_defined_metadata.update(card.metadata())
            model.save(str(path))
        path.joinpath("executorch_debug_handle_mapping.json").unlink(missing_ok=True)

    def open(self, path: Path, threads: int = 1) -> Network:
        raise UserError("Core ML runs on Apple's devices only")

    def weights(self, path: Path) -> list[StoredWeight]:
        return list(_stored(path))


def _stored(path: Path) -> Iterator[StoredWeight]:
    """A sparse weight is three constants: its shape, a bit for each number, and the numbers that are not zero."""
    with quiet():
        import coremltools

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        found = coremltools.optimize.coreml.get_weights_metadata(model, weight_threshold=1)
    values = {name: np.asarray(each.val) for name, each in found.items()}
    for name, value in values.items():
        if "_sparsified" not in name and np.issubdtype(value.dtype, np.floating) and value.ndim > 1:
            yield StoredWeight.of(value)
        elif "_sparsified" in name and "_shape" in name:
            kept = values.get(name.replace("_shape", "_nonzero_data"), np.zeros(0, np.float16))  # none: all are zero
            yield StoredWeight(int(np.prod(value)), np.sort(kept[kept != 0]), sparse=True)
