import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from grootv import cli
from grootv.errors import UserError
from grootv.visualization.network import build_model, network_input
from grootv.visualization.topology import affinity
from tests.tools.tiny_run import load_tool

visualize_tree = load_tool('analysis_tools/visualize_tree.py')

BACKBONE = "type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1])"
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(BACKBONE),
    head=dict(type='grootv.GrootVClsHead', num_classes=3, in_channels=64),
)
data_preprocessor = dict(mean=[100, 110, 120], std=[50, 51, 52], to_rgb=True)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(40, 32)),
    dict(type='PackInputs'),
]
test_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
""".replace('BACKBONE', BACKBONE)


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


class Page(HTMLParser):
    """The sources of a page's images and its text; refuses scripts and tags that nothing closes."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.sources, self.text = [], [], ''
        self.feed(path.read_text())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ('script', 'b')
        if tag == 'img':
            self.sources.append(unquote(dict(attrs)['src']))
        elif tag != 'meta':
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_pixel_belongs_to_the_cell_that_covers_it(tmp_path):
    assert visualize_tree.vertex_at([15, 39], (20, 60), (2, 3)) == 4
    assert visualize_tree.vertex_at([19, 40], (20, 60), (2, 3)) == 5
    assert visualize_tree.vertex_at(None, (20, 60), (2, 3)) == 4
    Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9)).save(tmp_path / 'labels.png')
    found = visualize_tree.read_labels(tmp_path / 'labels.png', np.zeros((60, 90, 3), np.uint8), (2, 3))
    assert found.tolist() == [[10, 13, 16, 37, 40, 43]]


def test_the_network_sees_what_is_drawn(files):
    cfg = cli.load_config(files[1])
    picture, inputs = network_input(cfg, build_model(cfg), files[0])
    assert picture.shape == (32, 40, 3) and inputs.shape == (1, 3, 32, 40)
    assert picture[16, 5, ::2].tolist() == [200, 0] and picture[16, 35, ::2].tolist() == [0, 150]


def test_the_tree_of_colours_keeps_to_one_side():
    image = Image.new('RGB', (640, 320), (255, 0, 0))
    image.paste((0, 0, 255), (320, 0, 640, 320))
    block = visualize_tree.tree_of_colours(image, 'euclidean')
    assert block.grid == (32, 64)
    reach = affinity(block.decay_along(block.tree), block.tree, 10)[0].view(block.grid)
    assert reach[:, :30].min() > reach[:, 34:].max()


def test_picture_of_colours(files):
    image, _, out = files
    visualize_tree.main(
        [image, '--out', str(out), '--metric', 'cosine', '--pixel', '10', '70', '--pixel', '0', '0']
    )
    assert Image.open(out).size == (1650, int((0.6 + 4.5 * 3 * 0.75) * 150))


def test_picture_of_a_checkpoint_needs_the_right_network(files, tmp_path):
    image, config, out = files
    for width, weights in ((8, 'weights.pth'), (16, 'wider.pth')):
        options = {'model.backbone.arch.embed_dims': width, 'model.head.in_channels': 8 * width}
        torch.save(build_model(cli.load_config(config, options)).state_dict(), tmp_path / weights)
    place = [image, '--config', config, '--stage', '1', '--block', '1', '--out', str(out)]
    visualize_tree.main([*place, '--checkpoint', str(tmp_path / 'weights.pth')])
    assert Image.open(out).size[0] == 1650
    with pytest.raises(UserError, match='checkpoint does not fit the model ImageClassifier'):
        visualize_tree.main([*place, '--checkpoint', str(tmp_path / 'wider.pth')])
    Path(config).write_text(CONFIG.replace(BACKBONE, "type='ResNet', depth=18"))
    with pytest.raises(UserError, match='has no GrootV backbone'):
        visualize_tree.main(place)


def test_picture_of_a_detector(tiny_run, tmp_path):
    run, out = tiny_run('detection'), tmp_path / 'tree.png'
    image = run.config.parent / 'scenes/images/validation/00001.jpg'
    place = ['--config', str(run.config), '--checkpoint', str(run.checkpoint)]
    visualize_tree.main([str(image), *place, '--out', str(out)])
    assert Image.open(out).size[0] == 1650


def test_report_of_a_folder(folder, tmp_path):
    images, labels = folder
    out = tmp_path / 'report'
    visualize_tree.main([str(images), '--labels', str(labels), '--report', str(out)])
    page, content = Page(out / 'index.html'), json.loads((out / 'report.json').read_text())
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
    options = ['--config', str(run.config), '--checkpoint', str(run.checkpoint)]
    visualize_tree.main([*options, '--count', '2', '--pictures', '1', '--report', str(tmp_path / 'report')])
    content = json.loads((tmp_path / 'report/report.json').read_text())
    assert list(content['summary']) == [f'stage {i}, block 0' for i in range(4)]
    assert len(content['images']) == 2
    assert len(list((tmp_path / 'report').glob('image-*'))) == 4
    shares = [one['inside_label'] for found in content['summary'].values() for one in found.values()]
    assert all(0 < share <= 1 for share in shares)


def test_report_of_one_stage_without_labels(files, tmp_path):
    image, config, _ = files
    visualize_tree.main([image, '--config', config, '--stage', '1', '--report', str(tmp_path / 'report')])
    content = json.loads((tmp_path / 'report/report.json').read_text())
    assert list(content['summary']) == ['stage 1, block 0', 'stage 1, block 1']
    assert 'inside_label' not in content['summary']['stage 1, block 0']['tree']
    assert not (tmp_path / 'report/labels.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('image.png --config pico.py --stage 4', '--stage must be 0 to 3, got 4'),
        ('image.png --config pico.py --stage 1 --block 2', '--block must be 0 to 1, got 2'),
        ('image.png --config pico.py --pixel 32 0', '--pixel must lie inside the picture of 32 x 40'),
        ('image.png --config pico.py --checkpoint nowhere.pth', 'nowhere.pth does not exist'),
        ('image.png --out tree.unknown', r'--out tree.unknown: end it in .*\.png'),
        ('image.png --labels labels', '--report'),
        ('image.png --stage 1', 'need --config'),
        ('text.png', 'image .*text.png cannot be read'),
        ('nowhere.png', 'does not exist'),
        ('empty', 'a picture shows one image'),
        ('empty --report report', 'holds no image'),
        ('--report report', 'give an image, a folder, or a --config'),
    ],
)
def test_bad_requests_name_the_argument(files, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path('text.png').write_text('no image')
    Path('empty').mkdir()
    with pytest.raises(UserError, match=message):
        visualize_tree.main(arguments.split())
    assert not list(tmp_path.glob('tree.*'))


def test_bad_labels(folder, tmp_path):
    images, labels = folder
    report = [str(images), '--labels', str(labels), '--report', str(tmp_path / 'report')]
    for bad, message in [
        (Image.new('RGB', (80, 60)), 'has 3 channels'),
        (Image.new('L', (60, 60)), 'is 60 x 60, and the network sees 60 x 80'),
        (None, r'image .*a\.png has no label map'),
    ]:
        (labels / 'a.png').unlink() if bad is None else bad.save(labels / 'a.png')
        with pytest.raises(UserError, match=message):
            visualize_tree.main(report)
