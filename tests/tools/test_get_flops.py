import math

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from grootv.errors import UserError
from tests.tools.tiny_run import ROOT, load_tool

get_flops = load_tool('analysis_tools/get_flops.py')

CONFIG = """
model = dict(
    type='{type}',
    backbone=dict(
        type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1]), metric='{metric}'
    ),
    head=dict(type='grootv.GrootVClsHead', num_classes=7, in_channels=64),
)
"""


@pytest.mark.parametrize(
    ('arguments', 'parameters', 'counts'),
    [
        ('--arch tiny', 29_958_600, ['4.778', '4.803', '4.811']),
        ('--arch small', 51_331_624, ['8.521', '8.556', '8.567']),
        ('--arch base', 90_597_096, ['15.089', '15.136', '15.151']),
        ('mask-rcnn_grootv-tiny_fpn_1x_coco', 48_593_744, ['265.495', '267.707', '267.875']),
        ('mask-rcnn_grootv-small_fpn_1x_coco', 69_565_488, ['340.628', '344.388', '344.626']),
        (
            'grootv-tiny_upernet_8xb2-160k_ade20k-512x512',
            59_745_676,
            ['941.315', '943.580', '943.752'],
        ),
        (
            'grootv-small_upernet_8xb2-160k_ade20k-512x512',
            81_712_748,
            ['1019.294', '1023.145', '1023.388'],
        ),
    ],
)
def test_published_figures(arguments, parameters, counts, capsys):
    config = list(ROOT.glob(f'configs/*/{arguments}.py'))
    get_flops.main([str(path) for path in config] or arguments.split())
    lines = capsys.readouterr().out.splitlines()[-5:]  # mmpretrain prints a line when it is first imported
    assert lines[0].split() == ['parameters', f'{parameters:,}']
    assert [line.split()[-2:] for line in lines[2:]] == [[count, 'G'] for count in counts]


def counted_by_hand(height, width, metric, protocol):
    """Multiply-adds of the pico network below: published protocol, scan, tree."""
    operators = protocol == 'operators'
    norm, activation, bias = (5, 0, 0) if operators else (2, 1, 1)
    c, depths, classes = 8, [1, 2, 1, 1], 7
    published = scan = tree = 0
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    published += height * width * (c // 2) * (3 * 9 + bias + norm + activation)
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    published += height * width * c * (c // 2 * 9 + bias + norm)
    for stage, depth in enumerate(depths):
        inner, rank, vertices = 2 * c, math.ceil(c / 16), height * width
        for _ in range(depth):
            published += vertices * (c * 2 * inner + inner * c + 9 * inner + 8 * c * c)
            published += vertices * (2 * norm * (c + inner) + activation * (2 * inner + 4 * c))
            inputs = vertices * (inner * (rank + 2) + rank * inner)
            read_out = vertices * inner
            published += inputs + read_out if operators else 0
            scan += 9 * vertices * inner + (0 if operators else inputs + read_out)
            edges = (height - 1) * width + height * (width - 1)
            tree += (edges + (vertices if metric == 'cosine' else 0)) * inner
        published += norm * vertices * c
        if stage < 3:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            published += height * width * 2 * c * (9 * c + norm)
            c *= 2
    hidden = c * 3 // 2
    after_convolution = 2 + 1  # BatchNorm, and pooling or GELU
    published += height * width * hidden * (c + after_convolution) + hidden * classes
    return published, scan, tree


@pytest.mark.parametrize('protocol', ['operators', 'modules'])
@pytest.mark.parametrize('metric', ['cosine', 'manhattan'])
def test_a_config_at_any_shape(tmp_path, capsys, metric, protocol):
    config = tmp_path / 'pico.py'
    config.write_text(CONFIG.format(type='ImageClassifier', metric=metric))
    get_flops.main([str(config), '--shape', '37', '50', '--protocol', protocol])
    published, scan, tree = counted_by_hand(37, 50, metric, protocol)
    totals = [published, published + scan, published + scan + tree]
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines[0].split()[0] == ('published' if protocol == 'operators' else 'counted')
    assert [line.split()[-2:] for line in lines] == [[f'{total / 1e6:.3f}', 'M'] for total in totals]


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


def count(name: str, protocol: str) -> int:
    """The published part of the count of a config at 32 x 32."""
    model, _ = get_flops.chosen_model(get_flops.parse_args([str(ROOT / 'configs' / name)]))
    counts = get_flops.PROTOCOLS[protocol](model, 32, 32)
    return sum(counts.values()) - counts['scan'] - counts['tree']


def test_every_stage_of_a_cascade_counts():
    one = count('detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py', 'modules')
    three = count('detection/cascade-mask-rcnn_grootv-tiny_fpn_1x_coco.py', 'modules')
    hidden, classes = 1024, 80

    def box_head(coordinates):
        weights = 256 * 7 * 7 * hidden + hidden * hidden + hidden * (classes + 1 + coordinates)
        return 1000 * (weights + 2 * hidden)  # two ReLUs

    convolutions = 4 * 14 * 14 * 256 * (9 * 256 + 2)  # a bias and a ReLU
    upsampled = 28 * 28 * (2 * 256 + (256 + 1) * classes)
    mask_head = 100 * (convolutions + 14 * 14 * 256 * 4 * 256 + upsampled)
    assert three - one == 3 * box_head(4) - box_head(4 * classes) + 2 * mask_head


@pytest.mark.parametrize(
    'name',
    [
        'detection/retinanet_grootv-tiny_fpn_1x_coco.py',
        'segmentation/grootv-tiny_fpn_8xb4-40k_ade20k-512x512.py',
    ],
)
def test_operators_are_those_of_mmengine(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    analyzer = FlopAnalyzer(MODELS.build(cfg.model).eval(), torch.zeros(1, 3, 32, 32))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        expected = analyzer.total()
    elements = sum(depth * (8 // 2**i) ** 2 * 160 * 2**i for i, depth in enumerate([2, 2, 9, 2]))
    assert count(name, 'operators') == expected + (1 + 2 * 5) * elements  # C h and two norms


def test_the_trace_of_a_detector_is_not_empty(monkeypatch):
    """A trace leaves out what ends in no result."""
    monkeypatch.setattr(get_flops, 'BOXES', 20)
    monkeypatch.setattr(get_flops, 'MASKS', 2)
    name = 'detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py'
    assert count(name, 'operators') == pytest.approx(count(name, 'modules'), rel=0.01)


def test_bad_requests(tmp_path):
    attention = str(ROOT / 'configs/segmentation/grootv-tiny_mask2former_8xb2-160k_ade20k-512x512.py')
    detector, empty = tmp_path / 'detector.py', tmp_path / 'empty.py'
    detector.write_text(CONFIG.format(type='mmdet.DINO', metric='cosine'))
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
