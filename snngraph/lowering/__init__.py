"""From a :class:`~snngraph.graph.SpikingGraph` to one ONNX model of standard operators."""

from snngraph.lowering.onnx import OPSET, Lowered, lower

__all__ = ["OPSET", "Lowered", "lower"]
