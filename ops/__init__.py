"""Tree-scan operators: image features -> edge weights -> spanning tree -> order -> scan.

====================================== =====================================================
:func:`grid_edge_weight`               features to the weight of every edge of the grid
:func:`minimum_spanning_tree`          edge weights to the edges of the tree
:func:`breadth_first_order`            tree edges to a :class:`Tree`, order and parents
:func:`build_tree`                     the three above in one step
:func:`tree_edge_distance`             features to the distance of every vertex to its parent
:func:`tree_scan`                      the state-space recurrence along the tree
:func:`selective_tree_scan`            the same from the parts of a selective state-space model
:func:`gated_read_out`                 states to the model's output: norms, skip and gate
:func:`token_tree`, :func:`token_scan` tree and scan over the tokens of a sequence
====================================== =====================================================

Errors name the function, the argument, the rule and what was found. A CUDA device is not waited for: scans
along an invalid tree give NaN there.

The scans, the distances and the read-out are differentiable once, in reverse mode (forward mode is refused),
and keep nothing but their arguments for the backward pass. Results and gradients have the same bits for any
number of threads.

:func:`onnxruntime_library` is where ONNX Runtime finds tree and scan.
:mod:`grootv.ops.reference` holds the same functions in plain PyTorch, slow and obvious.
"""

from . import convolution as convolution  # registers the operator that compiled models call
from ._library import onnxruntime_library
from .scan import gated_read_out, selective_tree_scan, tree_scan
from .tokens import token_chain, token_edge_weight, token_edges, token_scan, token_tree
from .tree import (
    METRICS,
    Tree,
    breadth_first_order,
    breadth_first_order_from_edges,
    build_tree,
    grid_edge_weight,
    minimum_spanning_tree,
    minimum_spanning_tree_from_edges,
    tree_edge_distance,
)

__all__ = [
    'METRICS',
    'Tree',
    'breadth_first_order',
    'breadth_first_order_from_edges',
    'build_tree',
    'gated_read_out',
    'grid_edge_weight',
    'minimum_spanning_tree',
    'minimum_spanning_tree_from_edges',
    'onnxruntime_library',
    'selective_tree_scan',
    'token_chain',
    'token_edge_weight',
    'token_edges',
    'token_scan',
    'token_tree',
    'tree_edge_distance',
    'tree_scan',
]
