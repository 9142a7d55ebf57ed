import json
from pathlib import Path

import pytest
from PIL import Image

from grootv.errors import UserError
from tests.tools.tiny_run import load_tool, run_tool

plot_curves = load_tool('analysis_tools/plot_curves.py')


def write_log(folder: Path, *records: dict) -> None:
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def train(step: int, loss: float) -> dict:
    return {'lr': 0.1, 'loss': loss, 'epoch': 1 + step // 3, 'iter': step, 'step': step}


def val(step: int, score: float) -> dict:
    return {'accuracy/top1': score, 'accuracy/top5': 100.0, 'time': 0.1, 'step': step}


def test_a_resumed_start_replaces_what_it_repeats(tmp_path):
    write_log(tmp_path / '20300101', train(1, 3.0), val(1, 10), train(4, 2.0), train(5, 9.0))
    write_log(tmp_path / '20300102', train(4, 2.5), val(2, 20))
    seen_train, seen_val = plot_curves.read_run(tmp_path)
    assert {step: record['loss'] for step, record in seen_train.items()} == {1: 3.0, 4: 2.5}
    assert {step: record['accuracy/top1'] for step, record in seen_val.items()} == {1: 10, 2: 20}


def test_the_first_metric_is_drawn_unless_others_are_wanted():
    records = {1: val(1, 10)}
    assert plot_curves.metric_names(records, None) == ['accuracy/top1']
    assert plot_curves.metric_names(records, ['accuracy/top5']) == ['accuracy/top5']
    assert plot_curves.metric_names({}, None) == []
    with pytest.raises(UserError, match='mIoU: the log has accuracy/top1, accuracy/top5'):
        plot_curves.metric_names(records, ['mIoU'])


def test_curves_show_what_the_log_says(tmp_path):
    write_log(tmp_path / '20300101', train(1, 3.0), train(4, 2.0), val(1, 10), val(2, 20))
    figure = plot_curves.draw(*plot_curves.read_run(tmp_path), ['accuracy/top1'], 'run')
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 3.0], [4, 2.0]]
    assert right.lines[0].get_xydata().tolist() == [[1, 10], [2, 20]]
    assert right.get_xlabel() == 'epoch'

    assert run_tool('analysis_tools/plot_curves.py', tmp_path) == 0
    assert Image.open(tmp_path / 'curves.png').width > 500


def test_a_folder_without_a_log_is_named(tmp_path, capsys):
    assert run_tool('analysis_tools/plot_curves.py', tmp_path) == 1
    assert f'{tmp_path} has no training log' in capsys.readouterr().err


def test_confusion_matrix_counts_every_image(tiny_run, tmp_path, capsys):
    run, picture = tiny_run('classification'), tmp_path / 'deep/matrix.png'
    assert run_tool('analysis_tools/confusion_matrix.py', run.config, run.checkpoint, '--out', picture) == 0
    assert 'of 10 right' in capsys.readouterr().out
    assert Image.open(picture).width > 500
