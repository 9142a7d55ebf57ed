"""Pictures of what training and testing left: curves, confusion matrix, contact sheet."""

import json
from pathlib import Path

import pytest
from PIL import Image

from grootv.errors import UserError
from tests.tools.tiny_run import load_tool, run_tool

CURVES, MATRIX, SHEET = (
    f'analysis_tools/{name}.py' for name in ('plot_curves', 'confusion_matrix', 'contact_sheet')
)


def write_log(folder: Path, *records: dict) -> None:
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def train(step: int, loss: float) -> dict:
    return {'lr': 0.1, 'loss': loss, 'epoch': 1 + step // 3, 'step': step}


def val(step: int, score: float) -> dict:
    return {'accuracy/top1': score, 'accuracy/top5': 100.0, 'time': 0.1, 'step': step}


def test_curves_show_the_log_where_a_resumed_start_replaces_what_it_repeats(tmp_path, failure):
    plot = load_tool(CURVES)
    assert f'{tmp_path} has no training log' in failure(CURVES, tmp_path)
    write_log(tmp_path / '20300101', train(1, 3.0), val(1, 10), train(4, 2.0), train(5, 9.0))
    write_log(tmp_path / '20300102', train(4, 2.5), val(2, 20))
    records = plot.read_run(tmp_path)
    names = plot.metric_names(records[1], None)
    assert names == ['accuracy/top1'] and plot.metric_names({}, None) == []
    with pytest.raises(UserError, match='mIoU: the log has accuracy/top1, accuracy/top5'):
        plot.metric_names(records[1], ['mIoU'])
    left, right = plot.draw(*records, names, 'run').axes
    assert left.lines[0].get_xydata().tolist() == [[1, 3.0], [4, 2.5]]
    assert right.lines[0].get_xydata().tolist() == [[1, 10], [2, 20]] and right.get_xlabel() == 'epoch'
    assert run_tool(CURVES, tmp_path, '--metrics', 'accuracy/top5') == 0
    assert Image.open(tmp_path / 'curves.png').width > 500


@pytest.mark.parametrize(
    'record, main',
    [
        ({'coco/cat_precision': 0.1, 'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.3}, 'coco/bbox_mAP'),
        ({'single-label/precision_classwise': 0.1, 'accuracy/top1': 0.2}, 'accuracy/top1'),
        ({'aAcc': 0.1, 'mIoU': 0.2, 'mAcc': 0.3}, 'mIoU'),
        ({'perplexity': 9.0}, 'perplexity'),
        ({'other': 1.0, 'second': 2.0}, 'other'),
    ],
)
def test_curves_show_every_loss_and_the_main_metric(tmp_path, record, main):
    plot = load_tool(CURVES)
    step = dict(train(1, 3.0), **{'decode.loss_ce': 2.0, 'aux.loss_ce': 1.0})
    write_log(tmp_path / '20300101', step, dict(record, step=1))
    records = plot.read_run(tmp_path)
    names = plot.metric_names(records[1], None)
    left, right = plot.draw(*records, names, 'run').axes
    assert [line.get_label() for line in left.lines] == ['sum', 'decode.loss_ce', 'aux.loss_ce']
    assert [line.get_label().split(',')[0] for line in right.lines] == [main]


def test_confusion_matrix_counts_every_image(tiny_run, tmp_path, capsys):
    run, picture = tiny_run('classification'), tmp_path / 'deep/matrix.png'
    assert run_tool(MATRIX, run.config, run.checkpoint, '--out', picture) == 0
    assert 'of 10 right' in capsys.readouterr().out
    assert Image.open(picture).width > 500


def test_confusion_matrix_of_a_detector_is_refused(tiny_run, tmp_path, failure):
    run, out = tiny_run('detection'), tmp_path / 'matrix.png'
    sentence = failure(MATRIX, run.config, run.checkpoint, '--out', out)
    assert sentence.endswith('builds MaskRCNN: give the config of a classifier with a test set')
    assert run_tool(MATRIX, run.config, run.checkpoint, '--out', tmp_path / 'matrix.xyz') == 2


def test_pictures_are_placed_row_by_row_on_a_contact_sheet(tmp_path, failure):
    folder, out, gap = tmp_path / 'pictures', tmp_path / 'new/sheet.png', load_tool(SHEET).GAP
    assert 'pictures does not exist' in failure(SHEET, folder, '--out', out)
    (folder / 'b').mkdir(parents=True)
    assert 'holds no .jpeg or' in failure(SHEET, folder, '--out', out)
    for name, colour, width in (('a', 'red', 20), ('b/c', 'lime', 20), ('d', 'blue', 10)):
        Image.new('RGB', (width, 10), colour).save(folder / f'{name}.png')
    assert run_tool(SHEET, folder, '--out', out) == 0
    expected = Image.new('RGB', (2 * 20 + 3 * gap, 2 * 10 + 3 * gap), 'white')
    expected.paste('red', (gap, gap, gap + 20, gap + 10))
    expected.paste('lime', (2 * gap + 20, gap, 2 * gap + 40, gap + 10))
    expected.paste('blue', (gap + 5, 2 * gap + 10, gap + 15, 2 * gap + 20))  # in the middle of its cell
    assert Image.open(out).tobytes() == expected.tobytes()
    assert run_tool(SHEET, folder, '--out', out, '--count', 1, '--scale', 2) == 0
    assert Image.open(out).size == (40 + 2 * gap, 20 + 2 * gap)

    (folder / 'e.png').write_bytes(b'no picture')
    assert 'e.png cannot be read' in failure(SHEET, folder, '--out', out)
    assert 'must be positive, got 8, 0, 1.0' in failure(SHEET, folder, '--out', out, '--columns', 0)
