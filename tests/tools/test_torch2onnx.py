"""Export to ONNX: parity with PyTorch at several sizes, and a run with ONNX Runtime alone."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from torch import nn

from grootv import ops
from grootv.checkpoint import build_model
from grootv.errors import UserError
from grootv.export import deployable, export_onnx, random_images, translation_table
from tests.tools.tiny_run import ROOT, load_tool, run_tool

torch2onnx = load_tool('deployment/torch2onnx.py')
CONFIGS = {
    'classification': 'demo/grootv-pico_digits.py',
    'detection': 'demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py',
}
SIZES = [(3, 97, 64), (2, 32, 256)]


@pytest.fixture(scope='module')
def export(tmp_path_factory):
    """The config of a task, its network and its ONNX file; exported once."""

    @cache
    def export(task):
        folder, config = tmp_path_factory.mktemp(task), ROOT / 'configs' / CONFIGS[task]
        weights = build_model(config).state_dict()
        for weight in filter(torch.is_floating_point, weights.values()):
            weight += 0.03 * torch.randn_like(weight)  # fresh ones hold zeros, which the exporter drops
        torch.save(weights, folder / 'weights.pth')
        path = folder / 'sub/model.onnx'
        assert run_tool('deployment/torch2onnx.py', config, folder / 'weights.pth', '--out', path) == 0
        return config, deployable(Config.fromfile(config), str(folder / 'weights.pth')), path

    return export


def session(path, library=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(ops.onnxruntime_library())
    return onnxruntime.InferenceSession(path, options)


@pytest.mark.parametrize('task', CONFIGS)
def test_outputs_are_those_of_pytorch_at_every_size(export, task):
    _, network, path = export(task)
    model = session(path)
    outputs = ['logits'] if task == 'classification' else [f'stage{index}' for index in range(4)]
    assert [output.name for output in model.get_outputs()] == outputs
    for size in SIZES:
        images = random_images(*size)
        expected = network(images)
        expected = [expected] if task == 'classification' else expected
        found = model.run(None, {'image': images.numpy()})
        for array, tensor in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, tensor, rtol=1e-4, atol=1e-5)
        assert 'trees equal' in torch2onnx.verify(path, network, images)


@pytest.mark.parametrize('side', [1, 32])
@pytest.mark.parametrize('task', CONFIGS)
def test_nothing_of_a_small_size_is_traced(export, task, side, tmp_path, capsys):
    config, network, _ = export(task)
    path = tmp_path / 'model.onnx'
    arguments = ('--out', path, '--input-size', side, side, '--verify')
    assert run_tool('deployment/torch2onnx.py', config, *arguments) == 0
    assert f'2 x 3 x {side + 65} x {side + 38}: outputs differ by ' in capsys.readouterr().out
    export_onnx(network, random_images(1, side, side), {}, path)
    for size in ((2, 96, 64), (3, 33, 71), (1, 161, 40)):
        images = random_images(*size)
        expected = network(images)
        expected = [expected] if task == 'classification' else expected
        for array, tensor in zip(session(path).run(None, {'image': images.numpy()}), expected, strict=True):
            np.testing.assert_allclose(array, tensor, rtol=1e-4, atol=1e-5)


def test_the_file_has_no_notes_and_names_the_normalisation(export):
    _, _, path = export('detection')
    content, model = path.read_bytes(), onnx.load(path)
    assert b'pkg.torch' not in content and str(ROOT).encode() not in content
    assert {each.domain: each.version for each in model.opset_import}['grootv'] == 1
    assert model.ir_version == 9
    metadata = {'mean': '123.675 116.28 103.53', 'std': '58.395 57.12 57.375', 'channels': 'RGB'}
    assert session(path).get_modelmeta().custom_metadata_map == metadata


def test_names_of_the_classes_are_in_the_metadata(export, tmp_path):
    config, _, path = export('classification')
    known = session(path).get_modelmeta().custom_metadata_map['classes']
    assert json.loads(known) == list('0123456789')
    cfg = Config.fromfile(config)
    trained, names = tmp_path / 'trained.pth', ['null', 'één', *'23456789']
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=names))), trained)
    assert torch2onnx.class_names(cfg, str(trained)) == names
    torch.save(dict(state_dict={}, meta={}), trained)
    assert torch2onnx.class_names(cfg, str(trained)) == torch2onnx.class_names(cfg) == tuple('0123456789')
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    wrapped = dict(type='RepeatDataset', dataset=dict(metainfo=dict(classes=str(tmp_path / 'names.txt'))))
    cfg.test_dataloader = dict(dataset=wrapped)
    assert torch2onnx.class_names(cfg) == ['cat', 'dog']
    cfg.test_dataloader = dict(dataset=dict(type='mmpretrain.CIFAR10'))
    assert torch2onnx.class_names(cfg)[0] == 'airplane'


def test_names_for_another_number_of_classes_are_left_out(tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    options = ('--cfg-options', 'model.head.num_classes=3')
    assert (
        run_tool(
            'deployment/torch2onnx.py', ROOT / 'configs' / CONFIGS['classification'], '--out', path, *options
        )
        == 0
    )
    assert 'no names in the metadata: 10 are known of 3 classes' in capsys.readouterr().out
    assert 'classes' not in session(path).get_modelmeta().custom_metadata_map


def test_the_documented_run_needs_no_torch(export, tmp_path):
    _, network, path = export('classification')
    page = (ROOT / 'docs/deployment.md').read_text()
    (code,) = re.findall(r'```python\n(import importlib.*?)```', page, re.DOTALL)
    code = f'import sys\nsys.modules["torch"] = None\n{code}\nnp.save("logits.npy", logits)\nprint(name)'
    (tmp_path / 'model.onnx').symlink_to(path)
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    np.save(tmp_path / 'image.npy', image)
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
    expected = network(((torch.from_numpy(image) - mean) / std).permute(2, 0, 1)[None])
    np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, rtol=1e-4, atol=1e-5)
    assert result.stdout == f'{expected.argmax()}\n'


def test_verification_finds_other_trees_and_other_weights(export, tmp_path):
    _, network, path = export('classification')
    images = random_images(1, 64, 64)
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == 'build_tree')
    next(each for each in node.attribute if each.name == 'metric').s = b'manhattan'
    onnx.save(model, tmp_path / 'trees.onnx')
    with pytest.raises(UserError, match='builds another tree than PyTorch from the same map'):
        torch2onnx.verify(tmp_path / 'trees.onnx', network, images)
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if each.name == 'head.fc.bias')
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 0.1, weight.name))
    onnx.save(model, tmp_path / 'weights.onnx')
    with pytest.raises(UserError, match=r'differs from PyTorch by 0.1 in .* images of 1 x 3 x 64 x 64'):
        torch2onnx.verify(tmp_path / 'weights.onnx', network, images)


def test_without_the_library_the_operator_is_named(export, tmp_path, monkeypatch, capsys):
    config, _, path = export('classification')
    with pytest.raises(Exception, match=r'grootv:build_tree.*is not a registered function/op'):
        session(path, library=False)
    monkeypatch.setattr(ops._library, '_ONNXRUNTIME', tmp_path / '_onnxruntime.so')
    monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: pytest.fail('exported before the check'))
    out = ('--out', tmp_path / 'model.onnx', '--verify')
    assert run_tool('deployment/torch2onnx.py', config, *out) == 1
    assert f'_onnxruntime.so is not in {tmp_path}; build it with `pip install' in capsys.readouterr().err


def test_bad_arguments_are_reported(tmp_path, failure):
    tool, config = 'deployment/torch2onnx.py', ROOT / 'configs' / CONFIGS['classification']
    assert 'nowhere.pth does not exist' in failure(tool, config, 'nowhere.pth', '--out', tmp_path / 'm.onnx')
    assert f'--out {tmp_path}: is a folder, give a file' in failure(tool, config, '--out', tmp_path)
    assert run_tool(tool, config, '--out', tmp_path / 'm.onnx', '--input-size', '0', '32') == 2
    assert not os.listdir(tmp_path)


class Mixer(nn.Module):
    """A module of a user's own: every operator once, with arguments that GrootV does not use."""

    def __init__(self):
        super().__init__()
        self.norms = nn.Parameter(torch.randn(5, 6))
        self.A = nn.Parameter(-torch.rand(6))

    def forward(self, maps):
        tree = ops.build_tree(maps, 'euclidean', root=1)
        x = maps.flatten(1, 2)
        distance = ops.tree_edge_distance(maps, tree, 'manhattan').unsqueeze(-1)
        up = ops.tree_scan(x, torch.exp(-distance).expand_as(x), tree, direction='up')
        D, *norms = self.norms
        h = ops.selective_tree_scan(up, x.abs(), self.A, x[..., :1], tree, delta_softplus=False)
        h = ops.selective_tree_scan(
            h, h, self.A, x[..., :1], tree, D, distance=x[..., 3].abs(), scale=-self.A
        )
        return ops.gated_read_out(h, x[..., 1:2], x, D, up, norms[:2], norms[2:], eps=0.1), *tree


def test_every_operator_is_exported_with_its_arguments(tmp_path):
    module, path = Mixer().eval().requires_grad_(False), tmp_path / 'mixer.onnx'
    options = dict(input_names=['maps'], custom_translation_table=translation_table(), verbose=False)
    dynamic = ({0: 'batch', 1: 'height', 2: 'width'},)
    torch.onnx.export(module, (torch.randn(2, 5, 7, 6),), path, dynamic_shapes=dynamic, **options)
    model = session(path)
    for shape in ((2, 5, 7, 6), (1, 1, 9, 6), (3, 12, 4, 6)):
        maps = torch.randn(shape)
        found = model.run(None, {'maps': maps.numpy()})
        for array, tensor in zip(found, module(maps), strict=True):
            np.testing.assert_allclose(array, tensor, rtol=1e-5, atol=1e-5)
