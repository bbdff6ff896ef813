"""ONNX, for ONNX Runtime, OpenVINO and many others."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.deploy.formats.format import Format, Network, StoredWeight, quiet
from st3.errors import UserError, one_line


class ONNX(Format):
    """One file, weights included. The output of every layer has the layer's name."""

    name: ClassVar = "onnx"
    file: ClassVar = "model.onnx"
    packages: ClassVar = (("onnx", "onnx"), ("onnxscript", "onnxscript"), ("onnxruntime", "onnxruntime"))
    extra: ClassVar = "export"

    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        import onnx

        try:
            with quiet():
                converted = torch.onnx.export(
                    program, dynamo=True, external_data=False, verbose=False, optimize=True,
                    input_names=["pixels"], output_names=["logits"],
                )  # fmt: skip
            assert converted is not None
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            cause = error.__cause__ or error
            raise UserError(f"{card.model.name} does not convert to ONNX: {one_line(cause)}") from error
        model = converted.model_proto
        _name_outputs_by_layer(model.graph)
        _forget_the_machine(model)
        onnx.helper.set_model_props(model, card.metadata())
        path.write_bytes(model.SerializeToString(deterministic=True))

    def open(self, path: Path, threads: int = 1) -> Network:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return session.run(None, {"pixels": pixels})[0]

        return run

    def weights(self, path: Path) -> list[StoredWeight]:
        import onnx

        graph = onnx.load(path).graph
        return [StoredWeight.of(onnx.numpy_helper.to_array(each)) for each in graph.initializer if len(each.dims) > 1]


def _name_outputs_by_layer(graph: Any) -> None:
    """Tools that show a file, and MNN, call a layer by what its node puts out."""
    outputs, names = {each.name for each in graph.output}, {}
    for node in graph.node:
        layer = next((name for name in node.input if name.startswith("network.") and name.endswith(".weight")), None)
        if layer and node.op_type in ("Conv", "Gemm", "MatMul") and node.output[0] not in outputs:
            names[node.output[0]] = layer.removeprefix("network.").removesuffix(".weight")
    for node in graph.node:
        for value in (node.input, node.output):
            value[:] = [names.get(name, name) for name in value]
        node.name = node.output[0]


def _forget_the_machine(model: Any) -> None:
    """Drops what the exporter adds for its own debugging: stack traces, with paths of this machine, and shapes."""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.name, model.graph.doc_string, model.doc_string = "st3", "", ""
