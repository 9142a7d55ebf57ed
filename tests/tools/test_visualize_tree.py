import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.models import GrootV
from grootv.ops import Tree, build_tree
from grootv.utils.errors import UserError
from grootv.visualization.tree import affinity, vertex_centres, vertex_depth

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location(
    'visualize_tree', ROOT / 'tools/analysis_tools/visualize_tree.py'
)
visualize_tree = importlib.util.module_from_spec(spec)
spec.loader.exec_module(visualize_tree)

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


def chain():
    """0 - 1 - 2 - 3 with a branch 1 - 4; rooted at 0."""
    parent = torch.tensor([[0, 0, 1, 2, 1]], dtype=torch.int32)
    order = torch.tensor([[0, 1, 2, 4, 3]], dtype=torch.int32)
    return Tree(order, parent, torch.tensor([[0, 1, 2, 4, 5, 5]], dtype=torch.int32))


@pytest.fixture
def files(tmp_path):
    """An image, red on the left and blue on the right, and a config."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40, 0], pixels[:, 40:, 2] = 200, 150
    pixels[..., 1] = np.arange(80)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    (tmp_path / 'pico.py').write_text(CONFIG)
    return str(tmp_path / 'image.png'), str(tmp_path / 'pico.py'), tmp_path / 'sub' / 'tree.png'


def test_depth_by_hand():
    assert vertex_depth(chain()).tolist() == [[0, 1, 2, 3, 2]]


def test_depth_of_a_batch_follows_the_parents():
    tree = build_tree(torch.randn(2, 6, 7, 3, generator=torch.Generator().manual_seed(0)))
    depth = vertex_depth(tree)
    above = depth.gather(1, tree.parent.long())
    assert torch.equal(depth, (above + 1) * (tree.parent != torch.arange(42)))


def test_affinity_by_hand():
    decay = torch.tensor([9.0, 0.5, 0.2, 0.1, 0.3]).view(1, 5, 1)
    expected = torch.tensor([[0.1, 0.2, 1.0, 0.1, 0.06]])
    torch.testing.assert_close(affinity(decay, chain(), 2), expected)
    two = torch.cat([decay, torch.ones_like(decay)], dim=2)  # a channel that hears all alike
    torch.testing.assert_close(affinity(two, chain(), 2), (expected + 1) / 2)


def test_centres_lie_in_the_middle_of_the_cells():
    centres = vertex_centres((2, 3), (20, 60))
    assert centres.tolist() == [[10, 5], [30, 5], [50, 5], [10, 15], [30, 15], [50, 15]]
    assert visualize_tree.vertex_at([15, 39], (20, 60), (2, 3)) == 4
    assert visualize_tree.vertex_at([19, 40], (20, 60), (2, 3)) == 5


def test_the_tree_of_colours_keeps_to_one_side():
    image = Image.new('RGB', (640, 320), (255, 0, 0))
    image.paste((0, 0, 255), (320, 0, 640, 320))
    grid, tree, decay = visualize_tree.tree_of_colours(image, 'euclidean')
    assert grid == (32, 64)
    heard = affinity(decay, tree, 10)[0].view(grid)
    assert heard[:, :30].min() > heard[:, 34:].max()


@pytest.mark.parametrize('options', [[], ['--metric', 'cosine', '--pixel', '10', '70']])
def test_picture_of_colours(files, options):
    image, _, out = files
    visualize_tree.main([image, '--out', str(out), *options])
    assert Image.open(out).size == (1650, int((0.8 + 4.5 * 0.75) * 150))


def test_picture_of_a_trained_block(files, tmp_path):
    image, config, out = files
    cfg = visualize_tree.cli.load_config(config)
    visualize_tree.init_default_scope('mmpretrain')
    model = visualize_tree.build_model(cfg, None, None, False)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
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


def test_the_network_sees_what_is_drawn(files):
    image, config, _ = files
    cfg = visualize_tree.cli.load_config(config)
    visualize_tree.init_default_scope('mmpretrain')
    model = visualize_tree.build_model(cfg, 'manhattan', None, False)
    picture, inputs = visualize_tree.network_input(cfg, model, image)
    assert picture.shape == (32, 40, 3) and inputs.shape == (1, 3, 32, 40)
    assert picture[16, 5, 0] == 200 and picture[16, 35, 2] == 150  # red, then blue

    trees = []
    ssm = model.backbone.stages[1].blocks[1].ssm
    assert isinstance(model.backbone, GrootV) and ssm.metric == 'manhattan'
    ssm.register_forward_hook(lambda module, args, output: trees.append(output[1]))
    grid, tree, decay = visualize_tree.tree_of_block(model, inputs, 1, 1)
    assert grid == (4, 5) and decay.shape == (1, 20, 32)
    assert torch.equal(tree.parent, trees[0].parent)
    assert (decay > 0).all() and (decay < 1).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--stage', '4'], '--stage must be 0 to 3, got 4'),
        (['--stage', '1', '--block', '2'], '--block must be 0 to 1 in stage 1, got 2'),
        (['--pixel', '32', '0'], '--pixel must lie inside the picture of 32 x 40'),
        (['--checkpoint', 'nowhere.pth'], 'nowhere.pth does not exist'),
        (['--out', 'tree.unknown'], r'--out tree.unknown: end it in .*\.png'),
    ],
)
def test_bad_requests_name_the_argument(files, options, message):
    image, config, out = files
    with pytest.raises(UserError, match=message):
        visualize_tree.main([image, '--config', config, '--out', str(out), *options])
    assert not out.exists()


def test_another_backbone_is_refused(files):
    image, config, out = files
    grootv = "type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 2, 1, 1])"
    assert grootv in CONFIG
    Path(config).write_text(CONFIG.replace(grootv, "type='ResNet', depth=18"))
    with pytest.raises(UserError, match='has no GrootV backbone'):
        visualize_tree.main([image, '--config', config, '--out', str(out)])


def test_bad_images(tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(UserError, match='cannot be read'):
        visualize_tree.main([str(tmp_path / 'text.png')])
    with pytest.raises(UserError, match='does not exist'):
        visualize_tree.main([str(tmp_path / 'nowhere.png')])


def test_options_of_a_network_need_its_config(files, tmp_path):
    for option in (['--checkpoint', 'weights.pth'], ['--stage', '1']):
        with pytest.raises(UserError, match='need --config'):
            visualize_tree.main([files[0], *option, '--out', str(tmp_path / 'tree.png')])
