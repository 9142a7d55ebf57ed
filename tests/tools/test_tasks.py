"""Training and testing of all three tasks; test_train.py and test_test.py hold the rest of classification."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image
from pycocotools import mask as coco_mask

from grootv.checkpoint import build_model, load_checkpoint_file
from grootv.engine import EpochSeedHook
from tests.tools.tiny_run import ROOT, TinyRun, losses, run_tool, scalars

TASKS = ('classification', 'detection', 'segmentation')
SCENES = ('detection', 'segmentation')
VISUALIZERS = dict(
    classification='UniversalVisualizer', detection='DetLocalVisualizer', segmentation='SegLocalVisualizer'
)
SCOPES = dict(classification='mmpretrain', detection='mmdet', segmentation='mmseg')


def metrics(run: TinyRun) -> dict[str, float]:
    """Those of the last validation."""
    others = ('data_time', 'time', 'step')
    return {name: value for name, value in scalars(run.work_dir)[-1].items() if name not in others}


# One process for all three libraries ----------------------------------------------------------


def one_after_another(runs: dict[str, TinyRun], folder: Path) -> dict[str, dict]:
    """Train and test each task in this process; losses, metrics, default scope and visualizer afterwards."""
    found = {}
    for task, run in runs.items():
        work_dir = folder / task
        assert run_tool('train.py', run.config, '--work-dir', work_dir, '--no-validate') == 0
        found[task] = dict(
            scope=DefaultScope.get_current_instance().scope_name,
            visualizer=type(Visualizer.get_current_instance()).__name__,
            losses=losses(work_dir),
        )
        (log,) = work_dir.glob('2*/*.log')
        found[task]['logged'] = log.read_text().count('(train)')
        out = folder / f'{task}.json'
        args = ('--work-dir', work_dir / 'test', '--out', out)
        assert run_tool('test.py', run.config, run.checkpoint, *args) == 0
        found[task]['metrics'] = json.loads(out.read_text())
    return found


def test_three_libraries_share_a_process_in_any_order(tiny_run, tmp_path):
    """This process trains them in order; a fresh one trains and tests them in reverse order."""
    runs = {task: tiny_run(task) for task in TASKS}
    reverse = {task: runs[task] for task in reversed(TASKS)}
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        found = pool.apply(one_after_another, (reverse, tmp_path))
    for task, run in runs.items():
        assert found[task]['scope'] == SCOPES[task]
        assert found[task]['visualizer'] == VISUALIZERS[task]
        assert found[task]['losses'] == losses(run.work_dir)
        assert found[task]['logged'] == len(found[task]['losses'])
        assert found[task]['metrics'] == pytest.approx(metrics(run))


# Stop and resume -----------------------------------------------------------------------------


@pytest.mark.parametrize('task, number', [('detection', signal.SIGTERM), ('segmentation', signal.SIGINT)])
def test_stopped_run_ends_like_an_uninterrupted_one(tiny_run, tmp_path, monkeypatch, task, number):
    """Stopped after iteration 6 of 8; the last checkpoint is of iteration 4."""
    run = tiny_run(task)

    def stop(self, runner, **_):
        if runner.iter == 6:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeedHook, 'before_train_iter', stop)
        assert run_tool('train.py', run.config, '--work-dir', tmp_path) == 128 + number
    first = losses(tmp_path)
    assert list(first) == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / run.checkpoint.name).exists()
    time.sleep(1)  # a log folder is named after the second
    assert run_tool('train.py', run.config, '--work-dir', tmp_path, '--resume') == 0

    second = losses(tmp_path)
    assert list(second) == [5, 6, 7, 8]
    assert first | second == losses(run.work_dir)
    assert metrics(TinyRun(run.config, tmp_path, run.checkpoint)) == metrics(run)
    whole, again = (load_checkpoint_file(f / run.checkpoint.name) for f in (run.work_dir, tmp_path))
    assert whole['state_dict'].keys() == again['state_dict'].keys()
    assert all(torch.equal(value, again['state_dict'][name]) for name, value in whole['state_dict'].items())


def test_ctrl_c_ends_in_one_sentence_with_loading_processes(tiny_run, tmp_path):
    """A terminal sends SIGINT to every process of the run.

    Right after a checkpoint these processes end and start, where Python loses the exception of a signal.
    """
    config = tiny_run('segmentation').config
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--no-validate']
    options = ['train_dataloader.num_workers=1', 'train_cfg.max_iters=100000']
    process = subprocess.Popen(
        [*command, '--cfg-options', *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 600
        while not (tmp_path / 'last_checkpoint').is_file() and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == 128 + signal.SIGINT, stderr
    # A loader that was being made may add what Python ignored at its end.
    (line,) = [line for line in stderr.splitlines() if line.startswith('train.py: ')]
    assert line.startswith('train.py: stopped by SIGINT; continue from') and line.endswith('with --resume')

    iteration = load_checkpoint_file((tmp_path / 'last_checkpoint').read_text())['meta']['iter']
    options = (f'train_cfg.max_iters={iteration + 1}',)
    args = ('--work-dir', tmp_path, '--no-validate', '--resume')
    assert run_tool('train.py', config, *args, options=options) == 0
    assert list(losses(tmp_path)) == [iteration + 1]


# Testing -------------------------------------------------------------------------------------


@pytest.mark.parametrize('task', SCENES)
def test_metrics_and_pictures(tiny_run, tmp_path, task):
    run = tiny_run(task)
    out, pictures = tmp_path / 'metrics.json', tmp_path / 'pictures'
    args = ('--work-dir', tmp_path / 'test', '--out', out, '--show-dir', pictures)
    assert run_tool('test.py', run.config, run.checkpoint, *args) == 0

    assert json.loads(out.read_text()) == pytest.approx(metrics(run))
    drawn = [path for path in pictures.rglob('*') if path.suffix in ('.png', '.jpg')]
    assert len(drawn) == 3
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.size == (256, 128)  # the annotations, the predictions
            left, right = np.split(np.asarray(picture), 2, axis=1)
        assert left.std() > 10 and (left != right).any()


def check_boxes(objects: dict, most: int) -> None:
    """Boxes of an image of 128 x 128 pixels with ten classes."""
    assert 0 < len(objects['bboxes']) == len(objects['scores']) == len(objects['labels']) <= most
    assert ((objects['bboxes'] >= 0) & (objects['bboxes'] <= 128)).all()
    assert ((objects['scores'] >= 0) & (objects['scores'] <= 1)).all()
    assert ((objects['labels'] >= 0) & (objects['labels'] < 10)).all()


def test_predicted_objects(predictions):
    images = predictions('detection')
    assert len(images) == 3
    for image in images:
        objects = image['pred_instances']
        check_boxes(objects, most=20)
        assert len(objects['masks']) == len(objects['bboxes'])
        assert coco_mask.decode(objects['masks']).shape[:2] == image['ori_shape'] == (128, 128)


def test_predicted_label_maps(predictions):
    plain, views = predictions('segmentation'), predictions('segmentation', '--tta')
    assert len(plain) == 3
    for image in (*plain, *views):
        labels = image['pred_sem_seg']['data']
        assert labels.shape == (1, 128, 128)
        assert ((labels >= 0) & (labels < 11)).all()
    # The averaged sample keeps the scores of its last view.
    pairs = zip(plain, views, strict=True)
    assert not any(torch.equal(a['seg_logits']['data'], b['seg_logits']['data']) for a, b in pairs)


def test_boxes_without_masks_have_tta(tiny_run, tmp_path):
    """RetinaNet, untrained, at an eighth of COCO's sizes."""
    run = tiny_run('detection')
    config = tmp_path / 'retinanet.py'
    config.write_text(f"""
_base_ = '{ROOT}/configs/detection/retinanet_grootv-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=8, depths=[1, 1, 1, 1]), init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0),
)
scenes = '{run.config.parent}/scenes/'
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=scenes,
        ann_file='annotations/validation.json',
        data_prefix=dict(img='images/validation/'),
        metainfo=dict(classes=tuple('0123456789')),
    ),
)
test_evaluator = dict(ann_file=scenes + 'annotations/validation.json')
_base_.tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(size, size), keep_ratio=True) for size in (96, 128, 160)
]
tta_pipeline = _base_.tta_pipeline
""")
    torch.save(build_model(config).state_dict(), tmp_path / 'untrained.pth')
    out = tmp_path / 'predictions.pkl'
    args = ('--work-dir', tmp_path, '--tta', '--out', out)
    assert run_tool('test.py', config, tmp_path / 'untrained.pth', *args) == 0
    images = pickle.loads(out.read_bytes())  # written by the tool just now
    assert len(images) == 3
    for image in images:
        check_boxes(image['pred_instances'], most=100)
        assert 'masks' not in image['pred_instances']
