"""What a picture shows is what the network computed with."""

import torch
from mmengine.config import Config
from PIL import Image

from grootv.models import GrootV
from grootv.ops import Tree
from grootv.visualization.blocks import recorded, scans
from grootv.visualization.network import build_model, network_input
from grootv.visualization.topology import share_changed


def backbone(**options) -> GrootV:
    return GrootV(dict(embed_dims=8, depths=[1, 2, 1, 1]), **options).eval()


def test_the_recorded_trees_are_those_of_the_scans():
    network, image, used = backbone(metric='manhattan'), torch.randn(2, 3, 32, 40), {}
    for place, ssm in scans(network).items():
        ssm.register_forward_hook(lambda module, args, output, place=place: used.update({place: output[1]}))
    with recorded(network) as found:
        network(image)
    assert list(found) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    block = found[1, 1]
    assert block.grid == (4, 5) and block.vertices.shape == (2, 20, 32) and block.metric == 'manhattan'
    assert torch.equal(block.tree.parent, used[1, 1].parent)
    decay = block.decay_along(block.tree)
    assert decay.shape == (2, 20, 32) and (decay > 0).all() and (decay < 1).all()
    assert not decay.requires_grad and not block.features.requires_grad

    network(torch.randn(2, 3, 32, 40))
    assert found[1, 1] is block  # nothing is kept outside


def test_a_stage_has_one_tree():
    def trees(network: GrootV) -> tuple[Tree, Tree]:
        with recorded(network) as found:
            network(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        return found[1, 0].tree, found[1, 1].tree

    assert share_changed(*trees(backbone(tree_per='stage'))) == 0
    assert share_changed(*trees(backbone(tree_per='block'))) > 0


def test_the_network_sees_what_is_drawn(tmp_path):
    image = Image.new('RGB', (80, 60), (200, 0, 0))
    image.paste((0, 0, 150), (40, 0, 80, 60))
    image.save(tmp_path / 'image.png')
    (tmp_path / 'config.py').write_text("""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='grootv.GrootV', arch=dict(embed_dims=8, depths=[1, 1, 1, 1])),
)
data_preprocessor = dict(mean=[100, 110, 120], std=[50, 51, 52], to_rgb=True)
steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(40, 32)), dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(pipeline=steps))
""")
    cfg = Config.fromfile(tmp_path / 'config.py')
    picture, inputs = network_input(cfg, build_model(cfg, None), tmp_path / 'image.png')
    assert picture.shape == (32, 40, 3) and inputs.shape == (1, 3, 32, 40)
    assert picture[16, 5].tolist() == [200, 0, 0] and picture[16, 35].tolist() == [0, 0, 150]
