import pytest
from torch import nn

from grootv.errors import UserError
from tests.tools.tiny_run import ROOT, load_tool

get_flops = load_tool('analysis_tools/get_flops.py')

CONFIG = """
model = dict(
    type='{type}',
    backbone=dict(type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1])),
    head=dict(type='grootv.GrootVClsHead', num_classes=7, in_channels=64),
)
"""


@pytest.mark.parametrize(
    ('arguments', 'parameters', 'counts'),
    [
        ('--arch tiny', 29_958_600, ['4.778', '4.803', '4.811']),
        ('--arch base', 90_597_096, ['15.089', '15.136', '15.151']),
        ('mask-rcnn_grootv-tiny_fpn_1x_coco', 48_593_744, ['265.495', '267.707', '267.875']),
        ('cascade-mask-rcnn_grootv-tiny_fpn_1x_coco', 81_522_014, ['399.282', '401.494', '401.662']),
        ('retinanet_grootv-tiny_fpn_1x_coco', 38_967_124, ['246.693', '248.905', '249.072']),
        ('grootv-tiny_upernet_8xb2-160k_ade20k-512x512', 59_745_676, ['941.315', '943.580', '943.752']),
    ],
)
def test_published_figures(arguments, parameters, counts, capsys):
    config = list(ROOT.glob(f'configs/*/{arguments}.py'))
    get_flops.main([str(path) for path in config] or arguments.split())
    lines = capsys.readouterr().out.splitlines()[-5:]  # mmpretrain prints a line when it is first imported
    assert lines[0].split() == ['parameters', f'{parameters:,}']
    assert [line.split()[-2:] for line in lines[2:]] == [[count, 'G'] for count in counts]


@pytest.mark.parametrize(
    ('options', 'counts'),
    [
        ('--protocol operators', ['published 1.252 M', '+ scan 1.303 M', '+ scan and tree 1.317 M']),
        ('--protocol modules', ['counted 1.177 M', '+ scan 1.260 M', '+ scan and tree 1.275 M']),
        (
            '--cfg-options model.backbone.metric=manhattan',
            ['published 1.252 M', '+ scan 1.303 M', '+ scan and tree 1.312 M'],
        ),
        (
            '--cfg-options model.backbone.edge_decay=True',
            ['published 1.252 M', '+ scan 1.319 M', '+ scan and tree 1.334 M'],
        ),
    ],
)
def test_a_config_at_any_shape(tmp_path, capsys, options, counts):
    config = tmp_path / 'pico.py'
    config.write_text(CONFIG.format(type='ImageClassifier'))
    get_flops.main([str(config), '--shape', '37', '50', *options.split()])
    assert [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()[-3:]] == counts


def test_layers_counted_by_hand():
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        *(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU(), nn.SiLU(), nn.GELU()),
        *(nn.LayerNorm(10), nn.Softmax(-1), nn.Linear(10, 5)),
    )
    assert get_flops.count_modules(layers, 6, 10) == dict(
        conv2d=15 * 8 * (27 + 1) + 15 * 8 * 9,  # 3 x 5 vertices; one has a bias
        conv_transpose2d=15 * 8 * 4 * 4 + 60 * 4,  # 2 x 2 weights from each of 8 to each of 4 channels
        **dict.fromkeys(('batch_norm', 'group_norm', 'layer_norm'), 2 * 60 * 4),
        **dict.fromkeys(('relu', 'silu', 'gelu'), 60 * 4),
        linear=24 * 10 * 5,
    )


@pytest.mark.parametrize('name', ['mask-rcnn_grootv-tiny_fpn_1x_coco', 'retinanet_grootv-tiny_fpn_1x_coco'])
def test_both_protocols_count_nearly_the_same_of_a_detector(monkeypatch, name):
    """A trace would leave out what ends in no result."""
    monkeypatch.setattr(get_flops, 'BOXES', 20)
    monkeypatch.setattr(get_flops, 'MASKS', 2)
    model, _ = get_flops.chosen_model(get_flops.parse_args([str(ROOT / f'configs/detection/{name}.py')]))
    operators, modules = (sum(count(model, 32, 32).values()) for count in get_flops.PROTOCOLS.values())
    assert operators == pytest.approx(modules, rel=0.02)


def test_bad_requests(tmp_path):
    attention = str(ROOT / 'configs/segmentation/grootv-tiny_mask2former_8xb2-160k_ade20k-512x512.py')
    detector, empty = tmp_path / 'detector.py', tmp_path / 'empty.py'
    detector.write_text(CONFIG.format(type='mmdet.DINO'))
    empty.write_text('train_cfg = dict()')
    for arguments, message in [
        ([str(detector)], 'builds DINO: this tool counts ImageClassifier, MaskRCNN'),
        ([str(empty)], 'builds nothing'),
        ([], 'either a config or --arch'),
        (['nowhere.py'], 'does not exist'),
        ([attention], 'attention layers: no protocol here counts them'),
    ]:
        with pytest.raises(UserError, match=message):
            get_flops.main(arguments)
    for shape in (['0'], ['1', '2', '3']):
        with pytest.raises(SystemExit):
            get_flops.main(['--arch', 'tiny', '--shape', *shape])
