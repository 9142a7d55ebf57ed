import json
import os
from pathlib import Path

import pytest
import torch
from mmpretrain.registry import MODELS
from safetensors import safe_open

from grootv.checkpoint import load_checkpoint_file
from grootv.errors import UserError
from tests.tools import published_network
from tests.tools.tiny_run import Call, load_tool

official_to_grootv = load_tool('model_converters/official_to_grootv.py')
WIDTH, DEPTHS, CLASSES = 8, [2, 1, 2, 1], 5


def parameters(dtype=torch.float32, **options):
    values = published_network.random_parameters(WIDTH, DEPTHS, CLASSES, **options)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}


def write(path, content):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(('size', 'layer_scale'), [((40, 40), False), ((37, 29), True)])
def test_converted_network_is_the_published_one(size, layer_scale):
    """In float64, where a wrong epsilon of a LayerNorm shows too."""
    published = parameters(torch.float64, layer_scale=layer_scale)
    state_dict, config = official_to_grootv.convert(published)
    config['backbone'].update(out_indices=(0, 1, 2, 3))
    model = MODELS.build(config).double().eval()
    model.load_state_dict(state_dict, strict=True)
    parents = []
    for stage in model.backbone.stages:
        for block in stage.blocks:
            block.ssm.register_forward_hook(lambda m, args, out: parents.append(out[1].parent))
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, CLASSES, dtype=torch.float64, generator=generator)
    learned = {k: v for k, v in published.items() if v.is_floating_point() and 'running' not in k}
    for value in learned.values():
        value.requires_grad_()

    logits, stages, expected_parents = published_network.forward(published, image, DEPTHS)
    maps = model.backbone(image)
    ours = model.head(maps)
    for x, expected in zip((ours, *maps), (logits, *stages), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-9, rtol=0)
    for parent, expected in zip(parents, expected_parents, strict=True):
        assert torch.equal(parent.long(), expected)

    (logits * weights).sum().backward()
    (ours * weights).sum().backward()
    for name, parameter in model.named_parameters():
        expected = learned[official_to_grootv.published_name(name)].grad.view_as(parameter)
        assert (parameter.grad - expected).norm() < 1e-9 * expected.norm(), name


@pytest.mark.parametrize('wrap', [lambda p: p, lambda p: {'model': p, 'epoch': 299}])
def test_converted_file_builds_and_loads(tmp_path, wrap, capsys):
    published = {f'module.{k}': v for k, v in parameters(torch.float64).items()}
    source = write(tmp_path / 'published.pth', wrap(published))
    official_to_grootv.main([source, str(tmp_path / 'new' / 'ours.pth')])
    checkpoint = torch.load(tmp_path / 'new' / 'ours.pth', weights_only=True)
    model = MODELS.build(checkpoint['meta']['model']).double()
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert checkpoint['state_dict']['backbone.stages.0.blocks.1.ssm.A_log'].dtype is torch.float64
    assert checkpoint['meta']['source']['name'] == 'published.pth'
    assert len(checkpoint['meta']['source']['sha256']) == 64
    assert '5 classes' in capsys.readouterr().out
    assert os.listdir(tmp_path / 'new') == ['ours.pth']
    again = tmp_path / 'ours.safetensors'
    official_to_grootv.main([source, str(again)])
    found = load_checkpoint_file(again)
    assert found.keys() == checkpoint['state_dict'].keys()
    assert all(torch.equal(found[name], value) for name, value in checkpoint['state_dict'].items())
    with safe_open(again, 'pt') as file:
        notes = {name: json.loads(text) for name, text in file.metadata().items()}
    assert notes == checkpoint['meta']


@pytest.mark.parametrize(('width', 'depth', 'arch'), [(80, 9, 'tiny'), (96, 13, 'small')])
def test_published_sizes_get_their_names(width, depth, arch):
    with torch.device('meta'):
        config = dict(
            type='ImageClassifier',
            backbone=dict(type='grootv.GrootV', arch=arch),
            head=dict(type='grootv.GrootVClsHead', num_classes=21841, in_channels=8 * width),
        )
        state = MODELS.build(config).state_dict()
    published = {official_to_grootv.published_name(name): value for name, value in state.items()}
    assert f'levels.2.blocks.{depth - 1}.TreeSSM.h_norm.weight' in published
    assert official_to_grootv.infer_config(published) == config


def without(*names):
    return lambda published: {k: v for k, v in published.items() if not k.startswith(names)}


def changed(key, value):
    return lambda published: {**published, key: value}


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (without('conv_head.1.0.running_var'), r'lacks keys \(1\): conv_head.1.0.running_var'),
        (without('head.weight'), 'has no parameter head.weight'),
        (without('levels.1.blocks.0.'), 'levels.1.blocks.0.TreeSSM.A_logs'),
        (changed('head.scale', torch.zeros(1)), r'has unknown keys \(1\): head.scale'),
        (
            changed('levels.0.blocks.0.TreeSSM.x_proj_weight', torch.zeros(3, 16)),
            r'x_proj_weight must have shape \(1, 3, 16\), found \(3, 16\)',
        ),
        (changed('head.bias', 'five'), r'head.bias must have shape \(5,\), found str'),
        (changed('module.head.bias', torch.zeros(5)), 'has head.bias twice'),
        (lambda p: {'weights': p}, 'has no parameter patch_embed.conv2.weight'),
        (lambda p: {'model': None}, "'model' of the checkpoint is NoneType, not parameters"),
    ],
)
def test_foreign_key_is_named(tmp_path, spoil, message):
    source, target = write(tmp_path / 'a.pth', spoil(parameters())), tmp_path / 'ours.pth'
    target.write_text('precious')
    with pytest.raises(UserError, match=message):
        official_to_grootv.main([source, str(target)])
    assert target.read_text() == 'precious'
    with pytest.raises(UserError, match='is a folder: give the file'):
        official_to_grootv.main([source, str(tmp_path)])


def test_failed_write_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    source, target = write(tmp_path / 'a.pth', parameters()), tmp_path / 'ours.pth'
    target.write_text('precious')

    def write_half(path, content):
        with path.open('wb') as file:
            file.write(content[: len(content) // 2])
        raise OSError('no space left on device')

    monkeypatch.setattr(Path, 'write_bytes', write_half)
    with pytest.raises(OSError, match='no space left'):
        official_to_grootv.main([source, str(target)])
    assert target.read_text() == 'precious'
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'ours.pth']


def test_code_in_a_checkpoint_runs_only_if_trusted(tmp_path):
    trap = Call(os.mkdir, str(tmp_path / 'sprung'))
    source = write(tmp_path / 'a.pth', {'model': parameters(), 'config': trap})
    with pytest.raises(UserError, match='--trust-checkpoint'):
        official_to_grootv.main([source, str(tmp_path / 'ours.pth')])
    assert os.listdir(tmp_path) == ['a.pth']
    official_to_grootv.main([source, str(tmp_path / 'ours.pth'), '--trust-checkpoint'])
    assert {'sprung', 'ours.pth'} <= set(os.listdir(tmp_path))
