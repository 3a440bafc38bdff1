"""An ONNX file as nested series and branches, grouped into the network's blocks.

Everything is read from the file: layers and shapes from its nodes, blocks from the module paths
in the names of its weights (`model.blocks_a.0.project.0.weight`), branches from dominators: what
several branches join was forked at the last node that all of them pass.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import networkx as nx
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto

from irv2.block_names import block_of, part_of
from irv2.errors import BundleError

# Numbers of a quantised model, not steps of the network.
_SILENT = {"QuantizeLinear", "DequantizeLinear"}
_JOINS = {"Add", "Concat"}  # they end the block whose branches they join
_TITLES = {
    "stem": "Stem",
    "blocks_a": "Inception-ResNet-A",
    "reduction_a": "Reduction-A",
    "blocks_b": "Inception-ResNet-B",
    "reduction_b": "Reduction-B",
    "blocks_c": "Inception-ResNet-C",
    "head": "Head",  # of TF-slim's network
    "classifier": "Classifier",
    "": "Input",
}
_WINDOWS = {"Conv": "conv {}", "MaxPool": "max pool", "AveragePool": "average pool"}
_PLAIN_NAMES = {
    "ReduceMean": "average pool",
    "GlobalAveragePool": "average pool",
    "Add": "add",
    "Concat": "concatenate",
    "Relu": "ReLU",
    "Sub": "subtract",
    "Mul": "multiply",
    "Cast": "cast",
    "Transpose": "transpose",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One step: its kind is an ONNX operator; `module` the block it has weights of, if any."""

    kind: str
    label: str
    shape: tuple[int, ...]  # of its output, without the batch
    module: str = ""


@dataclass(frozen=True, slots=True)
class Branches:
    """What runs side by side between a fork and a join; an empty series is the identity."""

    series: "tuple[Series, ...]"


Series: TypeAlias = "tuple[Layer | Branches, ...]"


@dataclass(frozen=True, slots=True)
class Block:
    """`count` equal blocks in a row."""

    title: str
    count: int
    series: Series
    shape: tuple[int, ...]  # of its output, without the batch


def read_blocks(path: Path) -> list[Block]:
    """The blocks of an ONNX file, in forward order. Raises BundleError if the file is none."""
    try:
        model = onnx.load(path, load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(path, f"not an ONNX model ({error})", "a bundle or its .onnx") from error
    if not model.graph.input or not model.graph.output:
        raise BundleError(path, "not an ONNX model", "a bundle or its .onnx file")
    return _blocks(_network(model))


def layers(series: Series) -> list[Layer]:
    """Every layer of a series, branches included."""
    found = []
    for item in series:
        inner = [item] if isinstance(item, Layer) else [x for s in item.series for x in layers(s)]
        found += inner
    return found


def _network(model: ModelProto) -> Series:
    """The whole graph from its first input to its first output."""
    start, end = model.graph.input[0].name, model.graph.output[0].name
    nodes = {name: node for node in model.graph.node for name in node.output}
    edges = [(source, name) for name, node in nodes.items() for source in node.input]
    graph = nx.DiGraph(edges)
    # Constants are not on the way from the images to the logits.
    graph = nx.DiGraph(graph.subgraph({start, end} | nx.descendants(graph, start)))
    forks = nx.immediate_dominators(graph, start)
    shapes = _shapes(model)

    def series(first: str, last: str) -> Series:
        items: list[Layer | Branches] = []
        while last != first:
            node = nodes[last]
            if node.op_type not in _SILENT:
                items.append(_layer(node, shapes.get(last, ())))
            sources = [name for name in node.input if name in graph]
            if len(sources) > 1:
                items.append(Branches(tuple(series(forks[last], name) for name in sources)))
                last = forks[last]
            else:
                [last] = sources
        return _with_activations(items[::-1])

    return series(start, end)


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        for value in [*model.graph.value_info, *model.graph.output]
    }


def _layer(node: NodeProto, shape: tuple[int, ...]) -> Layer:
    block = next(filter(None, map(block_of, node.input)), "")
    module = "stem" if part_of(block) == "stem" else block  # drawn as one
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in _WINDOWS:
        height, width = attributes["kernel_shape"]
        label = f"{height}×{width} {_WINDOWS[node.op_type].format(shape[0])}"
        if attributes.get("strides", [1])[0] > 1:
            label += f" /{attributes['strides'][0]}"
        if max(height, width) > 1 and not any(attributes.get("pads", [])):
            label += " V"
    elif node.op_type == "Gemm":
        label = f"linear {shape[0]}"
    else:
        label = _PLAIN_NAMES.get(node.op_type, node.op_type)
    return Layer(node.op_type, label, shape, module)


def _with_activations(items: list[Layer | Branches]) -> Series:
    """Each ReLU joins the layer before it. A convolution is followed by one unless it says so."""
    result: list[Layer | Branches] = []
    for item in items:
        before = result[-1] if result else None
        is_relu = isinstance(item, Layer) and item.kind == "Relu"
        if is_relu and isinstance(before, Layer) and before.kind != "Relu":
            label = before.label.removesuffix(" linear")
            label += "" if before.kind == "Conv" else ", ReLU"
            result[-1] = Layer(before.kind, label, before.shape, before.module)
        elif isinstance(item, Layer) and item.kind == "Conv":
            result.append(Layer(item.kind, f"{item.label} linear", item.shape, item.module))
        else:
            result.append(item)
    return tuple(result)


def _blocks(network: Series) -> list[Block]:
    groups: list[tuple[str, list[Layer | Branches]]] = [("", [])]
    for item in network:
        inside = layers((item,))
        module = next((layer.module for layer in inside if layer.module), "")
        name, items = groups[-1]
        opens = isinstance(item, Layer) and item.kind not in _JOINS  # without weights: the next's
        if len(groups) > 1 and name == "" and module == groups[-2][0]:  # it went on after a pool
            groups.pop()
            groups[-1][1].extend(items)
        elif len(groups) > 1 and name == "" and module:
            groups[-1] = (module, items)
        elif module not in ("", name) or (not module and name and opens):
            groups.append((module, []))
        groups[-1][1].append(item)
    if len(groups) == 1:  # a network of another kind, or with other names
        return [Block("Network", 1, network, layers(network)[-1].shape)]
    blocks: list[Block] = []
    for name, items in groups:
        block = _block(name, tuple(items))
        if blocks and (blocks[-1].title, blocks[-1].series) == (block.title, block.series):
            block = Block(block.title, blocks.pop().count + 1, block.series, block.shape)
        blocks.append(block)
    return blocks


def _block(name: str, series: Series) -> Block:
    shape = layers(series)[-1].shape
    return Block(_TITLES[part_of(name)], 1, _anonymous(series), shape)


def _anonymous(series: Series) -> Series:
    """Without module names, so that equal blocks compare equal."""
    return tuple(
        Layer(item.kind, item.label, item.shape)
        if isinstance(item, Layer)
        else Branches(tuple(_anonymous(branch) for branch in item.series))
        for item in series
    )
