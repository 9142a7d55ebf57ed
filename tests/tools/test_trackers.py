"""TensorBoard, Weights & Biases and MLflow by one setting, offline."""

from pathlib import Path

import pytest

from tests.tools.tiny_run import losses, run_tool

SETTING = 'visualizer.vis_backends='


def train(tiny_run, folder: Path, *names: str) -> Path:
    """Train one epoch; the folder of the run's files."""
    config = tiny_run('classification').config
    options = (SETTING + ','.join(names), 'train_cfg.max_epochs=1', 'param_scheduler=None')
    assert run_tool('train.py', config, '--work-dir', folder, options=options) == 0
    assert len(losses(folder)) == 3, 'the files of every run'
    (found,) = folder.glob('*/vis_data')
    return found


def test_tensorboard_has_the_losses(tiny_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train(tiny_run, tmp_path, 'tensorboard')))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars('loss')}
    assert values == pytest.approx(losses(tmp_path))


def test_wandb_writes_a_run_that_can_be_sent_later(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    folder = train(tiny_run, tmp_path, 'wandb')
    (run,) = folder.glob('wandb/offline-run-*/run-*.wandb')
    assert run.stat().st_size > 1000


def test_mlflow_writes_files_or_where_its_variable_says(tiny_run, tmp_path, monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    (metric,) = train(tiny_run, tmp_path / 'own', 'mlflow').glob('*/*/metrics/loss')
    assert len(metric.read_text().splitlines()) == 3
    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
    train(tiny_run, tmp_path / 'run', 'mlflow')
    assert len([*(tmp_path / 'store').glob('*/*/metrics/loss')]) == 1


def test_trackers_that_are_unknown_or_refuse_end_in_a_sentence(tiny_run, tmp_path, failure, monkeypatch):
    config = tiny_run('classification').config
    args = ('train.py', config, '--work-dir', tmp_path)
    sentence = failure(*args, options=(SETTING + 'tensorbord',))
    assert sentence.endswith(
        'visualizer.vis_backends knows no tensorbord: give tensorboard, wandb, mlflow, or a list of configs'
    )
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'nowhere://store')
    assert 'mlflow does not start (' in failure(*args, options=(SETTING + 'mlflow',))
