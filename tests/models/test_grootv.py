import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from grootv.models import GrootV
from grootv.models.layers import tree_ssm
from tests.models.test_recompute import kept_elements

PICO = dict(embed_dims=8, depths=[1, 1, 2, 1])


def pico(**options):
    torch.manual_seed(0)
    return GrootV(**{'arch': PICO, 'out_indices': (0, 1, 2, 3), **options})


def image(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('size', [(2, 1, 1), (2, 1, 40), (2, 33, 1), (2, 7, 5), (2, 33, 50), (0, 32, 32)])
def test_maps_of_any_size_halve_and_double(size):
    batch, *sides = size
    for i, x in enumerate(pico()(image(*sides, batch=batch))):
        assert x.shape == (batch, 8 * 2**i, *(-(-side // 2 ** (i + 2)) for side in sides))
        assert x.is_contiguous()  # operators of mmcv ignore strides


def test_out_indices_select_maps_and_skip_later_stages():
    every = pico()(image(32, 32))
    model = pico(out_indices=[0, 2])
    ran = []
    model.stages[3].register_forward_hook(lambda *_: ran.append(3))
    some = model(image(32, 32))
    assert len(some) == 2 and not ran
    assert torch.equal(some[0], every[0]) and torch.equal(some[1], every[2])


def test_one_tree_a_block_or_one_a_stage(monkeypatch):
    built, used = [], []
    build_tree = tree_ssm.build_tree
    monkeypatch.setattr(tree_ssm, 'build_tree', lambda *args: built.append(1) or build_tree(*args))
    for tree_per, count in (('block', 5), ('stage', 4)):
        model = pico(tree_per=tree_per)
        for block in model.stages[2].blocks:
            block.register_forward_hook(lambda module, args, output: used.append(output[1]))
        model(image(64, 64))
        assert len(built) == count
        built.clear()
    per_block, per_stage = used[:2], used[2:]
    assert not torch.equal(per_block[0].parent, per_block[1].parent)
    assert per_stage[0] is per_stage[1]


def test_the_metric_reaches_the_tree():
    parents = []
    for metric in ('cosine', 'euclidean', 'manhattan'):
        model = pico(metric=metric, out_indices=(0,))
        ssm = model.stages[0].blocks[0].ssm
        ssm.register_forward_hook(lambda module, args, output: parents.append(output[1].parent))
        model(image(48, 48))
    assert not torch.equal(parents[0], parents[1]) and not torch.equal(parents[1], parents[2])


@pytest.mark.parametrize('tree_per', ['block', 'stage'])
def test_published_weights_give_published_maps_with_edges_that_do_not_count(tree_per):
    published = pico(tree_per=tree_per).double()
    model = pico(tree_per=tree_per, edge_decay=True).double()
    missing, unexpected = model.load_state_dict(published.state_dict(), strict=False)
    assert len(missing) == 5 and all(name.endswith('ssm.edge_scale') for name in missing) and not unexpected
    x = image(48, 64).double()
    assert not torch.allclose(model(x)[3], published(x)[3])
    for name in missing:
        torch.nn.init.constant_(model.get_parameter(name), -1000)  # softplus gives 0
    for found, expected in zip(model(x), published(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_scales_of_the_edges_are_trained():
    model = pico(edge_decay=True)
    sum(x.square().mean() for x in model(image(48, 48))).backward()
    scales = [p for name, p in model.named_parameters() if name.endswith('edge_scale')]
    assert len(scales) == 5 and all(scale.grad.abs().sum() > 0 for scale in scales)


@pytest.mark.parametrize('tree_per', ['block', 'stage'])
def test_with_cp_keeps_fewer_activations_and_the_same_gradients(tree_per):
    results, kept = [], []
    for with_cp in (False, True):
        model = pico(with_cp=with_cp, drop_path_rate=0.5, tree_per=tree_per).train()
        torch.manual_seed(5)
        weights = [*model.parameters()]
        size, maps = kept_elements(lambda x, *_, model=model: model(x), image(64, 48, batch=4), *weights)
        loss = sum(x.square().sum() for x in maps)
        results.append([loss, *torch.autograd.grad(loss, weights)])
        kept.append(size)
    assert all(map(torch.equal, *results))
    assert kept[1] < kept[0] / 2.5


def test_drop_path_grows_linearly_and_drops_whole_samples():
    model = pico(drop_path_rate=0.4)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    x = torch.randn(64, 2, 2, 64)
    y = blocks[-1].train()(x)[0]
    untouched = (y == x).flatten(1).all(1)
    assert 0 < untouched.sum() < 64
    assert not (blocks[-1].eval()(x)[0] == x).flatten(1).all(1).any()


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_get_no_gradient_and_stay_in_evaluation_mode(frozen_stages):
    model = pico(frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    for index, part in enumerate([model.stem, *model.stages]):
        learns = index > frozen_stages
        assert all(p.requires_grad is learns for p in part.parameters())
        assert all(module.training is learns for module in part.modules())
    assert model.training


def test_norm_eval_holds_norms_in_evaluation_mode():
    modes = {type(module): module.training for module in pico(norm_eval=True).train().modules()}
    assert not modes[nn.LayerNorm] and modes[nn.Linear]


def test_layer_scale_and_post_norm():
    x = image(32, 32)
    model = pico(layer_scale_init_value=0.5)
    names = {name for name, _ in model.named_parameters()}
    assert {'stages.2.blocks.1.gamma1', 'stages.2.blocks.1.gamma2'} <= names
    model = pico(layer_scale_init_value=0.0, out_indices=(0,))
    stem = model.stages[0].norm(model.stem(x))
    assert torch.equal(model(x)[0], stem.permute(0, 3, 1, 2))  # no branch adds anything
    block = pico(post_norm=True).stages[0].blocks[0]
    nn.init.normal_(block.norm2.weight)  # or the two norms would be one
    y = torch.randn(1, 4, 4, 8)
    middle = y + block.norm1(block.ssm(y)[0])
    torch.testing.assert_close(block(y)[0], middle + block.norm2(block.mlp(middle)))


def test_initial_values():
    torch.manual_seed(0)
    model = GrootV('tiny')
    ssm = model.stages[1].blocks[0].ssm
    for layer in (ssm.in_proj, ssm.out_proj, model.stages[1].blocks[0].mlp.fc1):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.stages[1].blocks[0].mlp.fc2.bias.any()
    step = nn.functional.softplus(ssm.dt_proj.bias)
    assert step.min() >= 1e-3 * 0.999 and step.max() <= 0.1 * 1.001
    assert step.log().mean().item() == pytest.approx(-4.6, abs=0.3)  # log-uniform, not uniform
    assert ssm.dt_proj.weight.abs().max().item() == pytest.approx(ssm.dt_proj.in_features**-0.5, rel=0.01)
    assert ssm.x_proj.weight.abs().max().item() == pytest.approx(ssm.x_proj.in_features**-0.5, rel=0.01)
    assert ssm.A_log.shape == (320, 1) and not ssm.A_log.any()
    assert (ssm.D == 1).all() and ssm.conv.bias is None
    downsample = model.stages[0].downsample.conv
    assert downsample.weight.abs().max().item() == pytest.approx((80 * 9) ** -0.5, rel=0.01)


def test_pretrained_weights_load_under_a_prefix(tmp_path):
    torch.manual_seed(9)
    source = GrootV(PICO)
    weights = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    weights['head.fc.weight'] = torch.zeros(1)
    torch.save({'state_dict': weights}, tmp_path / 'model.pth')
    checkpoint = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'), prefix='backbone.')
    model, before = pico(init_cfg=checkpoint), pico()
    model.init_weights()
    before.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), pico().parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_builds_from_any_default_scope():
    for scope in ('mmengine', 'mmpretrain', 'mmdet', 'mmseg', 'grootv'):
        with DefaultScope.overwrite_default_scope(scope):
            assert isinstance(ROOT_MODELS.build(dict(type='grootv.GrootV', arch=PICO)), GrootV)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch must be one of tiny, small, base or a dict, got 'huge'"),
        (dict(arch=dict(embed_dims=8)), 'an arch dict has the keys embed_dims and depths, got'),
        (dict(arch=dict(embed_dims=7, depths=[1] * 4)), 'embed_dims must be an even positive'),
        (dict(arch=dict(embed_dims=8, depths=[1, 1])), 'depths must be 4 positive integers'),
        (dict(out_indices=(4,)), r'out_indices must be ascending stages from 0 to 3, got \(4,\)'),
        (dict(out_indices=(2, 1)), 'out_indices must be ascending'),
        (dict(metric='angle'), "metric must be one of cosine, euclidean, manhattan, got 'angle'"),
        (dict(tree_per='image'), "tree_per must be one of block, stage, got 'image'"),
        (dict(frozen_stages=5), 'frozen_stages must be one of -1, 0, 1, 2, 3, 4, got 5'),
        (dict(drop_path_rate=1.0), 'drop_path_rate must be at least 0 and below 1, got 1.0'),
    ],
)
def test_a_bad_option_is_one_clear_sentence(options, message):
    with pytest.raises(ValueError, match=f'^GrootV: .*{message}'):
        GrootV(**{'arch': PICO, **options})


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_without_nan(dtype):
    model, losses = pico(drop_path_rate=0.1).train(), []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(8):
        with torch.autocast('cpu', dtype):
            loss = sum(x.float().sub(0.3).square().mean() for x in model(image(32, 32)))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_runs(dtype):
    model, x = pico().eval(), image(32, 32)
    exact, rough = model(x), model.to(dtype)(x.to(dtype))
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype is dtype and b.isfinite().all()
        # Half a guide exchanges edges of the tree, so only most of the map can be close.
        assert (a - b).abs().median() < 0.1


def test_weights_are_contiguous_as_safetensors_and_sharding_need_them():
    assert all(value.is_contiguous() for value in pico(out_indices=(0, 1, 2, 3)).state_dict().values())
