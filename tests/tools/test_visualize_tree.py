import html
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from grootv import cli
from grootv.errors import UserError
from grootv.visualization.network import build_model, network_input
from tests.tools.tiny_run import load_tool, write_config

visualize_tree = load_tool('analysis_tools/visualize_tree.py')
HALVES = np.arange(80).reshape(1, 80).repeat(60, 0) // 40  # 0 on the left, 1 on the right
PIPELINE = "[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(40, 32)), dict(type='PackInputs')]"
WRAPPED = f"dict(_delete_=True, type='RepeatDataset', dataset=dict(pipeline={PIPELINE}))"


@pytest.fixture
def files(tmp_path):
    """An image, red on the left and blue on the right, and a config."""
    pixels = np.stack([200 * (1 - HALVES), np.arange(80) + 0 * HALVES, 150 * HALVES], 2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'image.png')
    config = write_config(tmp_path, tmp_path)
    text = config.read_text().replace('depths=[1, 1, 1, 1]', 'depths=[1, 2, 1, 1]')
    config.write_text(f'{text}test_dataloader = dict(dataset={WRAPPED})\n')
    return str(tmp_path / 'image.png'), str(config), tmp_path / 'sub' / 'tree.png'


@pytest.fixture
def folder(files, tmp_path):
    """Two copies of the image, one with a name that needs escaping, and their label maps: left 1, right 2."""
    images, labels = tmp_path / 'images', tmp_path / 'labels'
    for name in ('a', 'sub/<b>$x$ & "c"'):
        for root in (images, labels):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[0], images / f'{name}.png')
        Image.fromarray((1 + HALVES).astype(np.uint8)).save(labels / f'{name}.png')
    return images, labels


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


def test_picture_of_a_checkpoint_needs_the_right_network(files, tmp_path):
    image, config, out = files
    for width, weights in ((8, 'weights.pth'), (16, 'wider.pth')):
        options = {'model.backbone.arch.embed_dims': width, 'model.head.in_channels': 8 * width}
        torch.save(build_model(cli.load_config(config, options)).state_dict(), tmp_path / weights)
    place = [image, '--config', config, '--stage', '1', '--block', '1', '--out', str(out), '--checkpoint']
    visualize_tree.main([*place, str(tmp_path / 'weights.pth')])
    assert Image.open(out).size[0] == 1650
    with pytest.raises(UserError, match='checkpoint does not fit the model ImageClassifier'):
        visualize_tree.main([*place, str(tmp_path / 'wider.pth')])
    resnet = "backbone=dict(_delete_=True, type='ResNet', depth=18)"
    Path(config).write_text(Path(config).read_text().replace('backbone=backbone', resnet))
    with pytest.raises(UserError, match='has no GrootV backbone'):
        visualize_tree.main(place[:-1])


def test_report_of_a_folder(folder, tmp_path):
    images, labels = folder
    out = tmp_path / 'report'
    visualize_tree.main([str(images), '--labels', str(labels), '--report', str(out)])
    page, content = (out / 'index.html').read_text(), json.loads((out / 'report.json').read_text())
    sources = [unquote(source) for source in re.findall('<img src="([^"]*)"', page)]
    assert sorted(sources) == sorted(path.name for path in out.glob('*.png'))
    assert len(sources) == 2 + 2  # images, histograms and labels
    assert '<b>' not in page and '<b>$x$ & "c"' in html.unescape(page)
    assert [Path(entry['image']).stem for entry in content['images']] == ['a', '<b>$x$ & "c"']

    (summary,) = content['summary'].values()
    # 48 rows: the raster scan leaves a half twice in each, but at the end of the last one.
    vertices = 48 * 64
    assert summary['raster']['inside_label'] == pytest.approx(1 - (2 * 48 - 1) / (vertices - 1), abs=1e-5)
    assert summary['tree']['inside_label'] == pytest.approx(1 - 1 / (vertices - 1), abs=1e-5)
    assert 0.9 < summary['random']['inside_label'] < summary['tree']['inside_label']
    assert summary['raster']['depth_max'] == vertices - 1
    assert sum(content['histograms']['pixels']['depth']['tree']) == 2 * vertices


@pytest.mark.parametrize(
    ('task', 'arguments', 'stages'), [('segmentation', [], 4), ('detection', ['--stage', '0'], 1)]
)
def test_report_of_a_test_set(tiny_run, tmp_path, task, arguments, stages):
    run, out = tiny_run(task), tmp_path / 'report'
    arguments = [*arguments, '--config', str(run.config), '--checkpoint', str(run.checkpoint)]
    visualize_tree.main([*arguments, '--count', '2', '--pictures', '1', '--report', str(out)])
    content = json.loads((out / 'report.json').read_text())
    assert list(content['summary']) == [f'stage {i}, block 0' for i in range(stages)]
    assert len(content['images']) == 2
    assert len(list(out.glob('image-*'))) == stages
    labelled = task == 'segmentation'
    assert (out / 'labels.png').exists() == labelled
    for found in content['summary'].values():
        assert all(('inside_label' in one) == labelled for one in found.values())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('image.png --config tiny.py --stage 4', '--stage must be 0 to 3, got 4'),
        ('image.png --config tiny.py --stage 1 --block 2', '--block must be 0 to 1, got 2'),
        ('image.png --config tiny.py --pixel 32 0', '--pixel must lie inside the picture of 32 x 40'),
        ('image.png --config tiny.py --checkpoint nowhere.pth', 'nowhere.pth does not exist'),
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


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (Image.new('RGB', (80, 60)), 'has 3 channels'),
        (Image.new('L', (60, 60)), 'is 60 x 60, and the network sees 60 x 80'),
        (None, r'image .*a\.png has no label map'),
    ],
)
def test_bad_labels_are_named(folder, tmp_path, labels, message):
    path = folder[1] / 'a.png'
    path.unlink() if labels is None else labels.save(path)
    with pytest.raises(UserError, match=message):
        visualize_tree.main(
            [str(folder[0]), '--labels', str(folder[1]), '--report', str(tmp_path / 'report')]
        )
