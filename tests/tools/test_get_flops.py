import importlib.util
import math
from pathlib import Path

import pytest

from grootv.utils.errors import UserError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('get_flops', ROOT / 'tools/analysis_tools/get_flops.py')
get_flops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(get_flops)

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
    ('arch', 'parameters', 'counts'),
    [
        ('tiny', '29,958,600', ['4.778', '4.803', '4.811']),
        ('small', '51,331,624', ['8.521', '8.556', '8.567']),
        ('base', '90,597,096', ['15.089', '15.136', '15.151']),
    ],
)
def test_published_figures(arch, parameters, counts, capsys):
    get_flops.main(['--arch', arch])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['parameters', parameters]
    assert [line.split()[-2:] for line in lines[2:]] == [[count, 'G'] for count in counts]


def counted_by_hand(height, width, metric):
    """Multiply-adds of the pico network below: published protocol, scan, tree."""
    c, depths, classes = 8, [1, 2, 1, 1], 7
    published = scan = tree = 0
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    published += height * width * (c // 2) * (3 * 9 + 5)
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    published += height * width * c * (c // 2 * 9 + 5)
    for stage, depth in enumerate(depths):
        inner, rank, vertices = 2 * c, math.ceil(c / 16), height * width
        for _ in range(depth):
            projections = c * 2 * inner + inner * c + inner * (rank + 2) + rank * inner
            published += vertices * (projections + 9 * inner + 8 * c * c)
            published += vertices * (2 * 5 * c + 2 * 5 * inner + inner)  # norms, C h
            scan += 9 * vertices * inner
            edges = (height - 1) * width + height * (width - 1)
            tree += (edges + (vertices if metric == 'cosine' else 0)) * inner
        published += 5 * vertices * c
        if stage < 3:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            published += height * width * 2 * c * (9 * c + 5)
            c *= 2
    hidden = c * 3 // 2
    return published + height * width * hidden * (c + 2 + 1) + hidden * classes, scan, tree


@pytest.mark.parametrize('metric', ['cosine', 'manhattan'])
def test_a_config_at_any_shape(tmp_path, capsys, metric):
    config = tmp_path / 'pico.py'
    config.write_text(CONFIG.format(type='ImageClassifier', metric=metric))
    get_flops.main([str(config), '--shape', '37', '50'])
    published, scan, tree = counted_by_hand(37, 50, metric)
    totals = [published, published + scan, published + scan + tree]
    printed = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert printed == [[f'{total / 1e6:.3f}', 'M'] for total in totals]


def test_bad_requests(tmp_path):
    config = tmp_path / 'detector.py'
    config.write_text(CONFIG.format(type='MaskRCNN', metric='cosine'))
    with pytest.raises(UserError, match='builds no ImageClassifier'):
        get_flops.main([str(config)])
    with pytest.raises(UserError, match='either a config or --arch'):
        get_flops.main([])
    with pytest.raises(UserError, match='does not exist'):
        get_flops.main(['nowhere.py'])
    for shape in (['0'], ['1', '2', '3']):
        with pytest.raises(SystemExit):
            get_flops.main(['--arch', 'tiny', '--shape', *shape])
