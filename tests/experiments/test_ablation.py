import json

import ablation
import pytest
import stamp_scenes
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope

from grootv.errors import UserError
from grootv.models import GrootV
from tests.tools.tiny_run import ROOT

ARCH = dict(embed_dims=8, depths=[1, 2, 1, 1])


def network(**options) -> GrootV:
    Config.fromfile(ROOT / 'experiments/ablation_digits.py')  # registers ScanAblation
    return MODELS.build(dict(type='grootv.ScanAblation', arch=ARCH, **options)).eval()


def test_unchanged_network_is_grootv():
    found = network(path='tree', roots='all')
    expected = GrootV(ARCH).eval()
    expected.load_state_dict(found.state_dict())
    image = torch.randn(2, 3, 48, 64)
    assert torch.equal(found(image)[0], expected(image)[0])


@pytest.mark.parametrize('name', ablation.DIGITS)
def test_every_variant_trains_every_parameter(name):
    model = network(**ablation.DIGITS[name]).train()
    model(torch.randn(2, 3, 48, 64))[0].sum().backward()
    unused = {'A_log'} if name == 'no scan' else set()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None or parameter_name.split('.')[-1] in unused, parameter_name


@pytest.mark.parametrize(
    ('roots', 'sources'),
    [
        ('all', lambda i: range(5)),
        ('none', lambda i: [i]),
        ('last', lambda i: range(i + 1)),
        ('first', lambda i: range(i, 5)),
    ],
)
def test_states_along_a_raster_scan_aggregate_their_sources(roots, sources):
    ssm = network(path='raster', roots=roots).stages[0].blocks[0].ssm
    guide = torch.rand(1, 1, 5, ssm.D.numel()).repeat(6, 1, 1, 1)
    guide[range(5), 0, range(5)] *= 2  # each item but the last has another vertex
    states, _, _ = ssm.scan(guide, ssm.build_tree(guide))
    for vertex, moved in enumerate((states[:5] != states[5]).any(-1).tolist()):
        assert moved == [vertex in sources(i) for i in range(5)]


@pytest.mark.parametrize('name', ['detection', 'segmentation'])
def test_photographs_train_both_networks(name, few_stamps, tmp_path):
    stamp_scenes.main([str(tmp_path / 'scenes'), '--training', '4', '--validation', '1'])
    config = Config.fromfile(ROOT / f'experiments/ablation_{name}.py')
    init_default_scope(config.default_scope)
    config.train_dataloader.dataset.data_root = str(tmp_path / 'scenes')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    for options in ablation.PHOTOGRAPHS.values():
        network = dict(config.model, backbone=dict(config.model.backbone, **options))
        model = MODELS.build(network)
        batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        assert loss.isfinite() and model.backbone.stem.conv1.weight.grad.abs().sum() > 0


def test_page_and_picture_of_logged_scores(tmp_path):
    rows = []
    for seed in range(2):
        folder = tmp_path / f'seed-{seed}'
        for start, steps in enumerate(([1, 2], [2, 3])):  # stopped during the second epoch
            path = folder / f'start-{start}/vis_data/scalars.json'
            path.parent.mkdir(parents=True)
            lines = [{'loss': 1.0, 'step': 1}]
            lines += [
                {'step': step, 'coco/bbox_mAP': 0.1 * step + 0.01 * start + 0.1 * seed} for step in steps
            ]
            path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        found = ablation.scores(folder, 'coco/bbox_mAP')
        assert found == pytest.approx([10 + 10 * seed, 21 + 10 * seed, 31 + 10 * seed])
        every = dict.fromkeys(ablation.TASKS['detection'].metrics, found)
        rows.append(dict(task='detection', variant='tree', seed=seed, scores=every))
    assert '| tree | 36.0 ± 7.1 | 31.0, 41.0' in '\n'.join(ablation.page(rows))
    assert len(ablation.draw(rows).axes) == 2


def test_variant_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="'euclidean' is no variant of detection: choose from tree, edge"):
        ablation.main(['detection', '--variants', 'euclidean', '--out', str(tmp_path / 'x.jsonl')])
