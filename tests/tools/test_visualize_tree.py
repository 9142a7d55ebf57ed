import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv import cli
from grootv.errors import UserError
from grootv.visualization.network import build_model
from grootv.visualization.topology import affinity
from tests.tools.tiny_run import load_tool

visualize_tree = load_tool('analysis_tools/visualize_tree.py')

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1])),
    head=dict(type='grootv.GrootVClsHead', num_classes=3, in_channels=64),
)
data_preprocessor = dict(mean=[100, 110, 120], std=[50, 51, 52], to_rgb=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(40, 32)),
    dict(type='PackInputs'),
]
test_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
"""


@pytest.fixture
def files(tmp_path):
    """An image, red on the left and blue on the right, and a config."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40, 0], pixels[:, 40:, 2] = 200, 150
    pixels[..., 1] = np.arange(80)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    (tmp_path / 'pico.py').write_text(CONFIG)
    return str(tmp_path / 'image.png'), str(tmp_path / 'pico.py'), tmp_path / 'sub' / 'tree.png'


@pytest.fixture
def folder(files, tmp_path):
    """Two copies of the image, one with a name that needs escaping, and their label maps: left 1, right 2."""
    images, labels = tmp_path / 'images', tmp_path / 'labels'
    halves = np.ones((60, 80), np.uint8)
    halves[:, 40:] = 2
    for name in ('a', 'sub/<b>$x$ & "c"'):
        for root in (images, labels):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[0], images / f'{name}.png')
        Image.fromarray(halves).save(labels / f'{name}.png')
    return images, labels


class Pictures(HTMLParser):
    """The sources of a page's images; refuses scripts and tags that nothing closes."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources, self.text = [], [], ''
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ('script', 'b')
        if tag == 'img':
            self.sources.append(dict(attrs)['src'])
        elif tag != 'meta':
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_pixel_belongs_to_the_cell_that_covers_it():
    assert visualize_tree.vertex_at([15, 39], (20, 60), (2, 3)) == 4
    assert visualize_tree.vertex_at([19, 40], (20, 60), (2, 3)) == 5
    assert visualize_tree.vertex_at(None, (20, 60), (2, 3)) == 4


def test_a_vertex_has_the_label_in_the_middle_of_its_cell(tmp_path):
    Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9)).save(tmp_path / 'labels.png')
    picture = np.zeros((60, 90, 3), np.uint8)
    found = visualize_tree.read_labels(tmp_path / 'labels.png', picture, (2, 3))
    assert found.tolist() == [[10, 13, 16, 37, 40, 43]]


def test_the_tree_of_colours_keeps_to_one_side():
    image = Image.new('RGB', (640, 320), (255, 0, 0))
    image.paste((0, 0, 255), (320, 0, 640, 320))
    block = visualize_tree.tree_of_colours(image, 'euclidean')
    assert block.grid == (32, 64)
    heard = affinity(block.decay_along(block.tree), block.tree, 10)[0].view(block.grid)
    assert heard[:, :30].min() > heard[:, 34:].max()


@pytest.mark.parametrize(
    ('options', 'rows'), [([], 2), (['--metric', 'cosine', '--pixel', '10', '70', '--pixel', '0', '0'], 3)]
)
def test_picture_of_colours(files, options, rows):
    image, _, out = files
    visualize_tree.main([image, '--out', str(out), *options])
    assert Image.open(out).size == (1650, int((0.6 + 4.5 * rows * 0.75) * 150))


def test_picture_of_a_trained_block(files, tmp_path):
    image, config, out = files
    torch.save(
        {'state_dict': build_model(cli.load_config(config), None).state_dict()}, tmp_path / 'weights.pth'
    )
    place = ['--config', config, '--checkpoint', str(tmp_path / 'weights.pth')]
    visualize_tree.main([image, *place, '--stage', '1', '--block', '1', '--out', str(out)])
    assert Image.open(out).size[0] == 1650


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_picture_of_another_task(tiny_run, tmp_path, task):
    run, out = tiny_run(task), tmp_path / 'tree.png'
    image = run.config.parent / 'scenes/images/validation/00001.jpg'
    place = ['--config', str(run.config), '--checkpoint', str(run.checkpoint)]
    visualize_tree.main([str(image), *place, '--out', str(out)])
    assert Image.open(out).size[0] == 1650


def test_report_of_a_folder(folder, tmp_path):
    images, labels = folder
    out = tmp_path / 'report'
    visualize_tree.main([str(images), '--labels', str(labels), '--report', str(out)])
    page, content = (
        Pictures((out / 'index.html').read_text()),
        json.loads((out / 'report.json').read_text()),
    )
    assert sorted(page.sources) == sorted(path.name for path in out.glob('*.png'))
    assert len(page.sources) == 2 + 2  # images, histograms and labels
    assert '<b>$x$ & "c"' in page.text
    assert [Path(entry['image']).stem for entry in content['images']] == ['a', '<b>$x$ & "c"']

    (summary,) = content['summary'].values()
    # 48 rows: the raster scan leaves a half twice in each, but at the end of the last one.
    vertices = 48 * 64
    assert summary['raster']['inside_label'] == pytest.approx(1 - (2 * 48 - 1) / (vertices - 1), abs=1e-5)
    assert summary['tree']['inside_label'] == pytest.approx(1 - 1 / (vertices - 1), abs=1e-5)
    assert 0.9 < summary['random']['inside_label'] < summary['tree']['inside_label']
    assert summary['raster']['depth_max'] == vertices - 1
    for counts in content['histograms']['pixels'].values():
        assert len(counts['tree']) == len(counts['bins']) - 1
    assert sum(content['histograms']['pixels']['depth']['tree']) == 2 * vertices


def test_report_of_a_test_set(tiny_run, tmp_path):
    run = tiny_run('segmentation')
    options = ['--config', str(run.config), '--checkpoint', str(run.checkpoint), '--count', '2']
    options += ['--pictures', '1']
    visualize_tree.main([*options, '--report', str(tmp_path / 'report')])
    content = json.loads((tmp_path / 'report/report.json').read_text())
    assert list(content['summary']) == [f'stage {i}, block 0' for i in range(4)]
    assert len(content['images']) == 2
    assert len(list((tmp_path / 'report').glob('image-*'))) == 4
    assert all(
        0 < one['inside_label'] <= 1 for found in content['summary'].values() for one in found.values()
    )


def test_report_of_one_stage(files, tmp_path):
    image, config, _ = files
    visualize_tree.main([image, '--config', config, '--stage', '1', '--report', str(tmp_path / 'report')])
    content = json.loads((tmp_path / 'report/report.json').read_text())
    assert list(content['summary']) == ['stage 1, block 0', 'stage 1, block 1']
    assert 'inside_label' not in content['summary']['stage 1, block 0']['tree']
    assert not (tmp_path / 'report/labels.png').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--stage', '4'], '--stage must be 0 to 3, got 4'),
        (['--stage', '1', '--block', '2'], '--block must be 0 to 1, got 2'),
        (['--pixel', '32', '0'], '--pixel must lie inside the picture of 32 x 40'),
        (['--checkpoint', 'nowhere.pth'], 'nowhere.pth does not exist'),
        (['--out', 'tree.unknown'], r'--out tree.unknown: end it in .*\.png'),
        (['--labels', 'labels'], '--report'),
    ],
)
def test_bad_requests_name_the_argument(files, options, message):
    image, config, out = files
    with pytest.raises(UserError, match=message):
        visualize_tree.main([image, '--config', config, '--out', str(out), *options])
    assert not out.exists()


def test_a_checkpoint_of_another_network_is_refused(files, tmp_path):
    image, config, out = files
    cfg = cli.load_config(config, {'model.backbone.arch.embed_dims': 16, 'model.head.in_channels': 128})
    torch.save(build_model(cfg, None).state_dict(), tmp_path / 'wider.pth')
    options = ['--config', config, '--checkpoint', str(tmp_path / 'wider.pth'), '--out', str(out)]
    with pytest.raises(UserError, match='checkpoint does not fit the model ImageClassifier'):
        visualize_tree.main([image, *options])


def test_another_backbone_is_refused(files):
    image, config, out = files
    grootv = "type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1])"
    assert grootv in CONFIG
    Path(config).write_text(CONFIG.replace(grootv, "type='ResNet', depth=18"))
    with pytest.raises(UserError, match='has no GrootV backbone'):
        visualize_tree.main([image, '--config', config, '--out', str(out)])


def test_bad_images(tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty').mkdir()
    for arguments, message in [
        (['text.png'], 'image .*text.png cannot be read'),
        (['nowhere.png'], 'does not exist'),
        (['.'], 'a picture shows one image'),
        (['.', '--report', str(tmp_path / 'report')], 'image .*text.png cannot be read'),
        (['empty', '--report', str(tmp_path / 'report')], 'holds no image'),
    ]:
        with pytest.raises(UserError, match=message):
            visualize_tree.main([str(tmp_path / arguments[0]), *arguments[1:]])


def test_bad_labels(folder, tmp_path):
    images, labels = folder
    report = ['--labels', str(labels), '--report', str(tmp_path / 'report')]
    for bad, message in [
        (Image.new('RGB', (80, 60)), 'has 3 channels'),
        (Image.new('L', (60, 60)), 'is 60 x 60, and the network sees 60 x 80'),
    ]:
        bad.save(labels / 'a.png')
        with pytest.raises(UserError, match=message):
            visualize_tree.main([str(images), *report])
    (labels / 'a.png').write_text('no image')
    with pytest.raises(UserError, match=r'label map .* cannot be read'):
        visualize_tree.main([str(images), *report])
    (labels / 'a.png').unlink()
    with pytest.raises(UserError, match=r'image .*a\.png has no label map'):
        visualize_tree.main([str(images), *report])


def test_options_of_a_network_need_its_config(files, tmp_path):
    for option in (['--checkpoint', 'weights.pth'], ['--stage', '1']):
        with pytest.raises(UserError, match='need --config'):
            visualize_tree.main([files[0], *option, '--out', str(tmp_path / 'tree.png')])
    with pytest.raises(UserError, match='give an image, a folder, or a --config'):
        visualize_tree.main(['--report', str(tmp_path / 'report')])
