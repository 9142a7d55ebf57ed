"""GrootV keeps the promises of timm's models, and is the network of the ImageClassifier."""

import subprocess
import sys

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import FeatureInfo, group_parameters
from timm.optim import create_optimizer_v2

from grootv.checkpoint import load_checkpoint_file
from grootv.integrations.timm import TimmGrootV
from tests.tools.tiny_run import ROOT, train_tiny

PICO = dict(embed_dims=8, depths=[1, 1, 2, 1])
WIDTHS = [8, 16, 32, 64]


def pico(**options):
    torch.manual_seed(0)
    return timm.create_model('grootv_tiny', **{**PICO, **options})


def image(*size, batch=2, channels=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def classifier(classes=1000, **backbone):
    """mmpretrain's network, its BatchNorm away from the identity."""
    init_default_scope('mmpretrain')
    backbone = dict(type='grootv.GrootV', **{'arch': PICO, **backbone})
    head = dict(type='grootv.GrootVClsHead', num_classes=classes, in_channels=64)
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).eval()
    torch.nn.init.normal_(model.head.norm.running_mean)
    return model


def test_one_import_registers_the_models_without_the_openmmlab_libraries():
    script = """
import sys, grootv.integrations.timm, timm
names = ['grootv_base', 'grootv_small', 'grootv_tiny']
assert timm.list_models('grootv*', exclude_filters='*_edge') == names
assert timm.list_models('grootv*_edge') == [f'{name}_edge' for name in names]
timm.create_model('grootv_tiny', embed_dims=8, depths=[1, 1, 1, 1])
assert not {'mmcv', 'mmpretrain', 'mmdet', 'mmseg'} & set(sys.modules)
"""
    subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('grootv_tiny', 29_958_600), ('grootv_small', 51_331_624), ('grootv_base', 90_597_096)],
)
def test_published_parameter_counts(name, parameters):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert isinstance(model, TimmGrootV)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.default_cfg['architecture'] == name


def test_names_with_edge_have_a_scale_in_every_block():
    small = dict(embed_dims=8, depths=[1, 2, 1, 1])
    edge, plain = (timm.create_model(name, **small) for name in ('grootv_tiny_edge', 'grootv_tiny'))
    new = edge.state_dict().keys() - plain.state_dict().keys()
    assert len(new) == 5 and all(name.endswith('ssm.edge_scale') for name in new)
    assert edge.default_cfg['architecture'] == 'grootv_tiny_edge'


def test_no_weights_are_published_yet():
    with pytest.raises(RuntimeError, match='No pretrained weights exist for grootv_tiny'):
        pico(pretrained=True)


def test_images_are_prepared_as_by_the_config_that_trains(tmp_path):
    config = Config.fromfile(ROOT / 'configs/classification/grootv-tiny_8xb128_in1k.py')
    init_default_scope(config.default_scope)
    path = tmp_path / 'image.png'
    Image.effect_noise((300, 260), 50).convert('RGB').rotate(30).save(path)
    steps = Compose([TRANSFORMS.build(step) for step in config.test_pipeline])
    packed = steps(dict(img_path=str(path), gt_label=0))
    preprocess = MODELS.build(dict(type='ClsDataPreprocessor', **config.data_preprocessor))
    expected = preprocess({name: [value] for name, value in packed.items()})['inputs']
    ours = create_transform(**resolve_model_data_config(pico()))(Image.open(path))
    torch.testing.assert_close(ours[None], expected, atol=1e-5, rtol=0)


def test_the_default_cfg_describes_the_model_and_all_parameters_learn():
    model = pico(num_classes=42)
    cfg = model.default_cfg
    assert model.get_submodule(cfg['classifier']) is model.get_classifier()
    assert model.get_submodule(cfg['first_conv']) is model.backbone.stem.conv1
    x = image(*cfg['input_size'][1:], batch=1)
    assert model.forward_features(x).shape == (1, model.num_features, *cfg['pool_size'])
    y = model(image(64, 64))
    assert y.shape == (2, 42) and y.isfinite().all()
    y.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_head_and_classifier():
    model, x = pico().eval(), image(64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 2, 3) and model.num_features == 64
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, 96) and model.head_hidden_size == 96
    assert torch.equal(model.get_classifier()(pooled), model(x))
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(x), pooled)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x).mean((2, 3)), pooled)
    model.reset_classifier(5, 'avg')
    assert model(x).shape == (2, 5) and model.num_classes == 5
    assert pico(num_classes=0, global_pool='').eval()(x).shape == (2, 96, 2, 3)
    with pytest.raises(ValueError, match=r"^GrootV: global_pool='' needs num_classes=0, got 1000"):
        pico(global_pool='')


@pytest.mark.parametrize('name', ['avg', 'max', 'catavgmax'])
def test_global_pool(name):
    model, x = pico(global_pool=name, num_classes=3).eval(), image(64, 64)
    maps = model.head.project(model.forward_features(x))
    pooled = dict(avg=maps.mean((2, 3)), max=maps.amax((2, 3)))
    expected = pooled.get(name, torch.cat([*pooled.values()], 1))
    assert model.head_hidden_size == expected.shape[1]
    torch.testing.assert_close(model(x), model.head.fc(expected))


def test_drop_rates():
    model = pico(drop_rate=0.5, drop_path_rate=0.4)
    assert model.backbone.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.4)
    features = torch.randn(8, 64, 2, 2)
    kept = model.eval().forward_head(features, pre_logits=True)
    assert (kept == 0).sum() == 0
    dropped = model.train().forward_head(features, pre_logits=True)
    assert 0.4 < (dropped == 0).float().mean() < 0.6


def test_other_options_pass_through():
    model = pico(in_chans=4, dtype=torch.float64, device='cpu', tree_per='stage', layer_scale_init_value=0.5)
    model.reset_classifier(3)
    assert model(image(32, 32, channels=model.in_chans).double()).dtype is torch.float64
    assert model.backbone.stages[0].share_tree and model.backbone.stages[0].blocks[0].gamma1.shape == (8,)
    assert pico(device='meta').head.fc.weight.is_meta
    with pytest.raises(TypeError, match='out_indices'):
        pico(out_indices=(0,))


def test_grad_checkpointing_computes_blocks_again():
    model, calls = pico().train(), []
    model.backbone.stages[2].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, count in ((True, 2), (False, 3)):
        model.set_grad_checkpointing(enable)
        model(image(40, 24)).sum().backward()
        assert len(calls) == count


def test_layer_decay_uses_the_depths_of_the_backbone_and_weight_decay_spares_vectors():
    model = pico()
    depths = group_parameters(model, model.group_matcher(), reverse=True)
    expected = {n: model.backbone.get_layer_depth(n, 'backbone.')[0] for n, _ in model.named_parameters()}
    assert depths == expected
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse['backbone.stages.2.blocks.1.ssm.D'] == coarse['backbone.stages.2.norm.weight'] == 3
    assert set(coarse.values()) == set(range(6))

    optimizer = create_optimizer_v2(model, 'adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    assert len(scales) == len(expected)
    assert scales[id(model.head.fc.weight)] == 1
    assert scales[id(model.backbone.stem.conv1.weight)] == 0.5**6
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    assert decayed == {id(p) for p in model.parameters() if p.dim() > 1} and not model.no_weight_decay()


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3,), (-3,)])
def test_features_only_gives_the_maps_of_the_backbone(out_indices):
    stages = [index % 4 for index in out_indices]
    model = pico(features_only=True, out_indices=out_indices).eval()
    maps, expected = model(image(50, 33)), pico().backbone.eval()(image(50, 33), stages)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(maps, expected, strict=True))
    assert model.feature_info.channels() == [WIDTHS[i] for i in stages] == [m.shape[1] for m in maps]
    assert model.feature_info.reduction() == [4 * 2**i for i in stages]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())  # nothing idle is kept


def test_forward_intermediates():
    model, x = pico().eval(), image(64, 64)
    ran = []
    model.backbone.stages[3].register_forward_hook(lambda *_: ran.append(3))
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x))
    info = FeatureInfo(model.feature_info, 4)
    assert info.channels() == [m.shape[1] for m in maps]
    assert info.reduction() == [64 // m.shape[2] for m in maps]
    for indices, places in ((2, (2, 3)), ([0, -3], (0, 1))):
        end, some = model.forward_intermediates(x, indices, norm=True)
        assert torch.equal(end, last)
        assert all(torch.equal(found, maps[i]) for found, i in zip(some, places, strict=True))
    ran.clear()
    end, some = model.forward_intermediates(x, [1], stop_early=True)
    (only,) = model.forward_intermediates(x, [1], intermediates_only=True)
    assert all(torch.equal(found, maps[1]) for found in (end, *some, only)) and not ran
    with pytest.raises(ValueError, match=r'^forward_intermediates: output_fmt must be NCHW, got NHWC'):
        model.forward_intermediates(x, output_fmt='NHWC')


def test_a_pruned_model_takes_a_new_classifier():
    model, x = pico().eval(), image(64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([-4, 2]) == [0, 2]
    assert len(model.backbone.stages) == 3 and model.num_features == model.head_hidden_size == 32
    assert torch.equal(model(x), maps[2])
    model.set_grad_checkpointing()
    model.reset_classifier(7, 'avg')
    logits = model(x)
    torch.testing.assert_close(logits, model.head.fc(maps[2].mean((2, 3))))
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('feature_cls', ['hook', 'fx'])
def test_other_extractors_take_the_maps_channels_last_and_say_so(feature_cls):
    whole = pico().eval()
    model = pico(features_only=True, feature_cls=feature_cls).eval()
    maps = whole.forward_intermediates(image(64, 64), intermediates_only=True)
    assert model.output_fmt == 'NHWC'
    for x, expected in zip(model(image(64, 64)), maps, strict=True):
        assert torch.equal(x.permute(0, 3, 1, 2), expected)


def test_export_works():
    model, x = pico(depths=[1, 1, 1, 1]).eval(), image(64, 64)
    with torch.no_grad():
        assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_a_trained_checkpoint_gives_the_logits_of_the_image_classifier(tmp_path):
    path, arch = train_tiny(tmp_path, 'classification').checkpoint, dict(embed_dims=8, depths=[1, 1, 1, 1])
    reference = classifier(10, arch=arch)
    reference.load_state_dict(load_checkpoint_file(path)['state_dict'])
    model = timm.create_model('grootv_tiny', num_classes=10, checkpoint_path=str(path), **arch).eval()
    x = image(48, 40)
    assert torch.equal(model(x), reference(x))
    save_file(model.state_dict(), tmp_path / 'net.safetensors')
    path = str(tmp_path / 'net.safetensors')
    again = timm.create_model('grootv_tiny', num_classes=10, checkpoint_path=path, **arch).eval()
    assert torch.equal(again(x), reference(x))
    torch.testing.assert_close(load_checkpoint_file(path), dict(model.state_dict()))


def test_weights_adapt_to_other_classes_channels_and_feature_extractors(tmp_path):
    reference, x = classifier(), image(32, 32)
    torch.save(dict(state_dict=reference.state_dict()), tmp_path / 'in1k.pth')
    options = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'in1k.pth')))
    model, grey = pico(num_classes=3, in_chans=1, **options).eval(), image(32, 32, channels=1)
    torch.testing.assert_close(model.forward_features(grey), reference.backbone(grey.expand(2, 3, 32, 32))[0])
    assert model(grey).shape == (2, 3)
    assert torch.equal(model.head.conv.weight, reference.head.conv.weight)
    same = pico(**options).eval()
    assert torch.equal(same(x), reference(x))
    (last,) = pico(features_only=True, out_indices=(3,), **options).eval()(x)
    assert torch.equal(last, reference.extract_feat(x)[0])
    classifier().load_state_dict(same.state_dict(), strict=True)
