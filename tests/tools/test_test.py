"""tools/test.py: metrics, pictures and predictions of all three tasks."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import load_tool, losses, metrics, run_tool

LIBRARIES = {
    'segmentation': ('mmseg', 'SegLocalVisualizer', 3),
    'detection': ('mmdet', 'DetLocalVisualizer', 3),
    'classification': ('mmpretrain', 'UniversalVisualizer', 10),
}


@pytest.fixture(scope='module')
def run(tiny_run) -> tuple:
    """A config and its checkpoint: ten validation images."""
    return tiny_run('classification').config, tiny_run('classification').checkpoint


def scores(predictions: list[dict]) -> torch.Tensor:
    return torch.stack([prediction['pred_score'].float() for prediction in predictions])


def test_three_libraries_share_a_process_and_a_test_has_the_metrics_of_the_training(tiny_run, tmp_path):
    """Trained in one order before, and here in the other."""
    runs = {task: tiny_run(task) for task in reversed(LIBRARIES)}
    scenes = {Path(f'images/validation/0000{index}') for index in (1, 2, 3)}
    named = dict(detection=scenes, segmentation=scenes)
    named['classification'] = {Path(f'val/{label}/{label}0') for label in '0123456789'}
    for task, (scope, visualizer, images) in LIBRARIES.items():
        run, work_dir = runs[task], tmp_path / task
        assert run_tool('train.py', run.config, '--work-dir', work_dir, '--no-validate') == 0
        assert DefaultScope.get_current_instance().scope_name == scope
        assert type(Visualizer.get_current_instance()).__name__ == visualizer
        assert losses(work_dir) == losses(run.work_dir)
        (log,) = work_dir.glob('2*/*.log')
        assert log.read_text().count('(train)') == len(losses(work_dir))

        out, pictures = work_dir / 'deep/metrics.json', work_dir / 'pictures'
        args = ('--work-dir', work_dir / 'test', '--out', out, '--show-dir', pictures)
        assert run_tool('test.py', run.config, run.checkpoint, *args) == 0
        assert json.loads(out.read_text()) == pytest.approx(metrics(run.work_dir))
        drawn = [path for path in pictures.rglob('*') if path.suffix in ('.png', '.jpg')]
        assert len(drawn) == images
        assert {path.relative_to(pictures).with_suffix('') for path in drawn} == named[task]
        for path in drawn if task != 'classification' else ():
            with Image.open(path) as picture:
                assert picture.size == (256, 128)  # the annotations, the predictions
                left, right = np.split(np.asarray(picture), 2, axis=1)
            assert left.std() > 10 and (left != right).any()


def test_pictures_of_equal_names_in_two_folders_are_both_drawn(run, tmp_path):
    config, checkpoint = run
    data = shutil.copytree(config.parent / 'images', tmp_path / 'images')
    for path in data.glob('val/*/*.png'):
        path.rename(path.with_name('same.png'))
    both, cfg = tmp_path / 'both.py', Config.fromfile(config)
    part = cfg.test_dataloader.dataset
    parts = [dict(part, data_root=str(root)) for root in (data, config.parent / 'images')]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    cfg.dump(both)
    args = ('--work-dir', tmp_path / 'test', '--show-dir', tmp_path / 'pictures')
    assert run_tool('test.py', both, checkpoint, *args) == 0
    assert len(list((tmp_path / 'pictures').rglob('same.png'))) == 10
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 20


def test_pictures_have_the_boxes_above_the_threshold(tiny_run, tmp_path):
    """The config shows boxes of 0.7 and more; those of the tiny detector have less."""
    run, means = tiny_run('detection'), []
    for threshold in ('0.9', '0.0'):
        folder = tmp_path / threshold
        args = ('--show-dir', folder, '--show-score-thr', threshold, '--work-dir', tmp_path / 'test')
        assert run_tool('test.py', run.config, run.checkpoint, *args) == 0
        (path,) = folder.rglob('00001*')
        with Image.open(path) as picture:
            means.append(np.asarray(picture)[:, 128:].astype(int))
    assert np.abs(means[0] - means[1]).mean() > 5


def test_every_view_of_tta_is_averaged(predictions):
    plain, views = scores(predictions('classification')), scores(predictions('classification', '--tta'))
    assert plain.shape == views.shape == (10, 10)
    torch.testing.assert_close(views.sum(1), torch.ones(10))
    assert not torch.equal(plain, views)
    pairs = zip(predictions('segmentation'), predictions('segmentation', '--tta'), strict=True)
    # The averaged sample keeps the scores of its last view.
    assert not any(torch.equal(a['seg_logits']['data'], b['seg_logits']['data']) for a, b in pairs)


def test_tta_of_equal_views_is_the_plain_test(run, predictions, tmp_path):
    """EMAHook would swap in random weights: it does not find the averaged ones in the wrapper."""
    config, checkpoint = run
    assert 'ema_state_dict' in load_checkpoint_file(checkpoint)
    same = tmp_path / 'same_views.py'
    same.write_text(f"""
_base_ = '{config}'
resize = dict(type='ResizeEdge', scale=32, backend='pillow', interpolation='bicubic')
views = dict(type='TestTimeAug', transforms=[[resize] * 2, [dict(type='PackInputs')]])
tta_pipeline = [dict(type='grootv.LoadImageFromFile'), views]
""")
    out = tmp_path / 'views.pkl'
    assert run_tool('test.py', same, checkpoint, '--work-dir', tmp_path, '--tta', '--out', out) == 0
    views = pickle.loads(out.read_bytes())  # written by the tool just now
    torch.testing.assert_close(scores(views), scores(predictions('classification')))


def test_amp_gives_nearly_the_same_scores(predictions):
    full, half = scores(predictions('classification')), scores(predictions('classification', '--amp'))
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0, atol=0.05)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ('args', 'options', 'sentence'),
    [
        (['--tta', '--show-dir', 'pictures'], (), '--tta averages several views'),
        (['--out', 'metrics.json', '--out-item', 'pred'], (), 'predictions are pickled'),
        (['--out', '/proc/nowhere/metrics.json'], (), 'its folder cannot be made'),
        (['--out', 'result.txt'], (), 'end it in .json (metrics) or .pkl (predictions)'),
        (['--out-item', 'pred'], (), '--out says where'),
        (['--show-score-thr', '0.5'], (), '--show-score-thr is of pictures'),
        (['--show-score-thr', '0.5', '--show-dir', 'pictures'], (), 'is of boxes, which'),
        (['--tta'], ('tta_pipeline=None', 'tta_model=None'), 'has no tta_model and no tta_pipeline'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(run, tmp_path, failure, args, options, sentence):
    assert sentence in failure('test.py', *run, '--work-dir', tmp_path, *args, options=options)


def test_weights_of_a_foreign_checkpoint_are_named_below_the_wrapper_of_tta(run, tmp_path, failure):
    config, path = run
    checkpoint = load_checkpoint_file(path)
    checkpoint['state_dict']['neck.extra'] = checkpoint['state_dict'].pop('head.fc.bias')
    torch.save(checkpoint, tmp_path / 'foreign.pth')
    error = failure('test.py', config, tmp_path / 'foreign.pth', '--work-dir', tmp_path, '--tta')
    assert error.startswith('test.py: checkpoint does not fit the model ImageClassifier')
    assert 'missing: head.fc.bias; unknown: neck.extra' in error


def test_tta_reaches_the_pipeline_of_a_wrapped_dataset():
    inner = dict(type='Inner', pipeline=['plain'])
    loader = dict(dataset=dict(type='Repeat', dataset=inner))
    views = dict(tta_pipeline=['views'], tta_model=dict(type='Mean'))
    cfg = Config(dict(model=dict(type='Net'), test_dataloader=loader, **views))
    load_tool('test.py').use_tta(cfg, 'c.py')
    assert cfg.test_dataloader.dataset.dataset.pipeline == ['views']
    assert cfg.model == dict(type='Mean', module=dict(type='Net'))
