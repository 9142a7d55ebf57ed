import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from grootv import cli
from grootv.errors import UserError
from grootv.ops import breadth_first_order
from grootv.visualization.blocks import BlockTree
from grootv.visualization.network import build_model
from tests.tools.tiny_run import load_tool

robustness = load_tool('analysis_tools/robustness.py')
OWN = ('cosine', 'block', 'first')


@pytest.fixture
def trained(tiny_run):
    """The tiny classifier, its config and its batches."""
    run = tiny_run('classification')
    cfg = cli.load_config(run.config)
    model = build_model(cfg, str(run.checkpoint))
    return model, cfg, robustness.read_batches(cfg, 1000)


def test_changes_by_hand():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    assert robustness.shift(picture)[:, :, 0].tolist() == [[0, 0, 42], [126, 126, 168]]
    assert robustness.brightness(picture, 1.3).max() == 255
    assert robustness.brightness(picture, 0.5)[0, 1].tolist() == [21, 28, 35]
    assert robustness.noise(picture, 0, 1).tolist() == picture.tolist()
    one, two = robustness.noise(picture, 20, 1), robustness.noise(picture, 20, 2)
    assert (one != two).any() and (one == robustness.noise(picture, 20, 1)).all()
    large = np.full((32, 32, 3), 60, np.uint8)
    large[:, 13:] = 160
    for name, change in robustness.CHANGES.items():
        other = change(large, 0)
        assert other.shape == large.shape and other.dtype == np.uint8, name
        assert (other != large).any(), name


def test_tally_by_hand():
    def built(edges):
        tree = breadth_first_order(torch.tensor(edges, dtype=torch.int32), 2, 3)
        return {(0, 0): BlockTree(torch.zeros(2, 2, 3, 1), tree, 'cosine', lambda _: torch.zeros(0))}

    before = torch.tensor([[3.0, 0], [0, 4]]), built([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    after = torch.tensor([[3.0, 0], [5, 4]]), built([[0, 1, 2, 3, 6], [0, 1, 2, 3, 4]])
    tally = robustness.Tally()
    tally.add(before, after, torch.tensor([0, 1]))
    found = tally.figures()
    assert found['changed_edges'] == 0.1  # one of five in one of two images
    assert found['changed_edges_by_block'] == {'stage 0, block 0': 0.1}
    assert found['logits'] == 1  # off by 5 where the norm is 5
    assert found['changed_predictions'] == 0.5 and found['accuracy'] == 50
    tally.add(before, before, torch.tensor([0, 1]))
    assert tally.figures()['changed_edges'] == 0.05 and tally.figures()['accuracy'] == 75


def test_the_setting_reaches_the_blocks(trained):
    model, _, batches = trained
    inputs = model.data_preprocessor(batches[0])['inputs']

    def first_tree(setting):
        robustness.configure(model, setting)
        return robustness.predict(model, inputs)[1][0, 0].tree

    first, last = first_tree(OWN), first_tree(('cosine', 'block', 'last'))
    assert (first.order[:, 0] == 0).all() and (last.order[:, 0] == 63).all()
    assert robustness.share_changed(first, last).sum() == 0
    assert robustness.share_changed(first, first_tree(('euclidean', 'stage', 'first'))).sum() > 0
    assert all(stage.share_tree for stage in model.backbone.stages)


def test_pictures_are_the_files_and_become_the_pipelines_input(trained):
    model, _, batches = trained
    (batch,), path = batches, batches[0]['data_samples'][0].img_path
    pictures = robustness.pictures_of(batch)
    assert (pictures[0] == np.asarray(Image.open(path))).all()
    inputs = model.data_preprocessor(batch)['inputs']
    assert torch.equal(robustness.network_input(model, batch, pictures), inputs)


def test_clean_images_change_nothing(trained):
    model, _, batches = trained
    found = robustness.measure(model, batches, [OWN], OWN)[OWN]
    robustness.configure(model, OWN)
    right = [
        int(sample.pred_label) == int(sample.gt_label)
        for batch in batches
        for sample in model.test_step(batch)
    ]
    assert found['none'] == dict(
        changed_edges=0,
        changed_edges_by_block={f'stage {i}, block 0': 0 for i in range(4)},
        logits=0,
        changed_predictions=0,
        accuracy=round(100 * sum(right) / len(right), 3),
    )
    assert 0 < found['noise, deviation 2']['changed_edges'] < found['noise, deviation 40']['changed_edges']
    assert 0 < found['float16 autocast']['logits'] < found['bfloat16 autocast']['logits'] < 0.2


def test_nan_stays_in_its_image(trained):
    model, _, _ = trained
    robustness.configure(model, OWN)
    clean = torch.randn(3, 3, 32, 32)
    spoilt = clean.clone()
    spoilt[1, :, 16, 16] = torch.nan
    before, after = (robustness.predict(model, inputs)[0] for inputs in (clean, spoilt))
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_stress_inputs(trained):
    model, _, _ = trained
    found = robustness.stress(model, (32, 32), OWN, ['cosine', 'manhattan'])
    assert list(found) == ['constant', 'checkerboard', 'one bright pixel', 'one NaN pixel', 'all NaN']
    for name, by_metric in found.items():
        for one in by_metric.values():
            assert one['finite'] == ('NaN' not in name) and one['edges'] == 2 * 8 * 7
    nothing = found['all NaN']['cosine']
    assert nothing['distinct_weights'] == 1 and nothing['differs_from_equal_weights'] == 0
    assert nothing['depth'] == 7 + 7  # the first row, then a column


def test_the_tool_writes_tables_and_picture(tiny_run, tmp_path):
    run, out = tiny_run('classification'), tmp_path / 'out'
    settings = ['--metrics', 'euclidean', '--tree-per', 'stage', '--roots', 'last', '--count', '5']
    robustness.main([str(run.config), str(run.checkpoint), *settings, '--out', str(out)])
    found = json.loads((out / 'robustness.json').read_text())
    assert found['images'] == 5 and found['trained'] == 'cosine, block, first'
    assert list(found['settings']) == ['cosine, block, first', 'euclidean, stage, last']
    assert list(found['stress']['constant']) == ['cosine', 'euclidean']
    text = (out / 'README.md').read_text()
    assert '| euclidean, stage, last |' in text and '| all NaN | cosine | 1 of 112 | 14 | 0 % | NaN |' in text
    assert Image.open(out / 'robustness.png').size[1] == 1180


def test_images_are_chosen_evenly(trained):
    _, cfg, _ = trained
    (batch,) = robustness.read_batches(cfg, 4)
    assert robustness.labels_of(batch).tolist() == [0, 3, 6, 9]


def test_bad_requests(tiny_run, tmp_path):
    run, out = tiny_run('classification'), str(tmp_path / 'out')
    with pytest.raises(UserError, match='--count must be 1 or more, got 0'):
        robustness.main([str(run.config), str(run.checkpoint), '--count', '0', '--out', out])
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='checkpoint does not fit the model ImageClassifier'):
        robustness.main([str(run.config), str(tmp_path / 'other.pth'), '--out', out])
    cfg = Config.fromfile(run.config)
    cfg.default_scope = 'mmdet'
    cfg.dump(tmp_path / 'detector.py')
    with pytest.raises(UserError, match='is no classifier'):
        robustness.main([str(tmp_path / 'detector.py'), str(run.checkpoint), '--out', out])
