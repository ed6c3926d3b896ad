"""What a convolution and the movement of channels around it take on a GPU as they are: arithmetic, bytes, launches.

The convolution runs on the matrix unit with every group padded to the unit's tile, and each movement around it as a
kernel of its own; channelwise operations count as fused.
"""

from __future__ import annotations

from math import ceil, prod

from onnx import NodeProto

from onnxopt.discover.channel_terms import UNARY
from onnxopt.discover.conv_site import ConvSite
from onnxopt.model.graph import Graph
from onnxopt.plan.estimate import GPU_PRODUCT_SHARE
from onnxopt.target.figures import GpuProfile

# The tile of a matrix instruction in fp16: outputs, and inputs that one instruction takes.
_OUTPUT_TILE = 16
_INPUT_TILE = 16
_FREE = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def original_seconds(site: ConvSite, graph: Graph, profile: GpuProfile, element_bytes: int = 2) -> float:
    """Predicted time of the site's nodes at the graph's batch size, 0 where its shapes are not known.

    Weights of ``element_bytes`` 2 run at the rate of fp16, of 4 at that of tf32.
    """
    dims, source = graph.shape(site.output), graph.shape(site.before.source)
    if dims is None or source is None:
        return 0.0
    batch, _, *positions = dims
    taps, pixels = prod(site.kernel), batch * prod(positions)
    rate = (profile.fp16_flops if element_bytes == 2 else profile.tf32_flops) * GPU_PRODUCT_SHARE / 2
    products = _original_products(site) * taps * pixels / rate
    movement = _movement(site, graph)
    moved = sum(_moved_elements(graph, node.output[0]) for node in movement)
    kernels = len(site.parts) + len(movement) + (len(site.parts) > 1)
    weights = sum(part.live.size for part in site.parts) * taps
    own = prod(graph.shape(site.input) or (0,)) + prod(dims) + weights
    bandwidth = profile.memory_bytes_per_second / element_bytes
    return kernels * profile.launch_seconds + max(products, own / bandwidth) + 2 * moved / bandwidth


def _original_products(site: ConvSite) -> int:
    """Products for each tap and position, every group padded to the matrix unit's tile; depthwise runs without it."""
    if site.pattern == "depthwise":
        return site.connections
    total = 0
    for part in site.parts:
        outputs, width = part.live.shape
        per_group = _up(outputs // part.groups, _OUTPUT_TILE // 2) * _up(width, _INPUT_TILE)
        total += part.groups * per_group
    return total


def _movement(site: ConvSite, graph: Graph) -> list[NodeProto]:
    """The nodes whose work disappears; what lies between two convolutions counts for the second."""
    nodes = list(site.before.nodes)
    if not _feeds_convolution(site.after.target, graph):
        nodes += site.after.nodes
    names = set(site.movement)
    return [n for n in nodes if n.name in names and n.op_type not in _FREE and graph.is_data(n.output[0])]


def _feeds_convolution(tensor: str, graph: Graph) -> bool:
    readers = graph.readers(tensor)
    while len(readers) == 1 and readers[0].op_type in UNARY | {"BatchNormalization"}:
        readers = graph.readers(readers[0].output[0])
    return any(node.op_type == "Conv" for node in readers)


def _moved_elements(graph: Graph, name: str) -> int:
    return prod(graph.shape(name) or (0,))


def _up(value: int, tile: int) -> int:
    return ceil(value / tile) * tile
