"""A trained model as a file that runs without twofold: ONNX, TorchScript, or a program of torch.export."""

from .folder import export
from .formats import FORMATS
from .graphs import Graph, graph_of

__all__ = ["FORMATS", "Graph", "export", "graph_of"]
