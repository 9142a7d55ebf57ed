"""Modules of a user's own that call the operators, in ONNX."""

import numpy as np
import onnxruntime
import torch
from torch import nn

from grootv import ops
from grootv.integrations.onnx import translation_table


class Mixer(nn.Module):
    """Every operator once, with arguments that GrootV does not use."""

    def __init__(self, channels=6):
        super().__init__()
        self.norms = nn.Parameter(torch.randn(5, channels))
        self.rate = nn.Parameter(-torch.rand(channels))

    def forward(self, maps):
        tree = ops.build_tree(maps, 'euclidean', root=1)
        x = maps.flatten(1, 2)
        up = ops.tree_scan(x, x.sigmoid(), tree, direction='up')
        h = ops.selective_tree_scan(up, x.abs(), self.rate, x[..., :1], tree, delta_softplus=False)
        D, *norms = self.norms
        return ops.gated_read_out(h, x[..., 1:2], x, D, up, norms[:2], norms[2:], eps=0.1), *tree


def test_every_operator_is_exported_with_its_arguments(tmp_path):
    module, path = Mixer().eval().requires_grad_(False), tmp_path / 'mixer.onnx'
    torch.onnx.export(
        module,
        (torch.randn(2, 5, 7, 6),),
        path,
        input_names=['maps'],
        dynamic_shapes=({0: 'batch', 1: 'height', 2: 'width'},),
        custom_translation_table=translation_table(),
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(ops.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options)
    for shape in ((2, 5, 7, 6), (1, 1, 9, 6), (3, 12, 4, 6)):
        maps = torch.randn(shape)
        output, *tree = session.run(None, {'maps': maps.numpy()})
        expected, *expected_tree = module(maps)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
        for array, tensor in zip(tree, expected_tree, strict=True):
            np.testing.assert_array_equal(array, tensor)
