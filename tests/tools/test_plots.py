"""Pictures of what training and testing left: curves, confusion matrix, contact sheet."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from grootv.confusion import read_predictions
from grootv.errors import UserError
from grootv.visualization.sheet import GAP, LINE
from grootv.visualization.sheet import sheet as draw_sheet
from tests.tools.tiny_run import CLASSES, load_tool, metrics, run_tool

CURVES, MATRIX, SHEET, BROWSE = (
    f'analysis_tools/{name}.py'
    for name in ('plot_curves', 'confusion_matrix', 'contact_sheet', 'browse_dataset')
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


@pytest.mark.parametrize(
    ('task', 'unit', 'last'),
    [('classification', 'images', 'F1'), ('detection', 'boxes', 'F1'), ('segmentation', 'pixels', 'IoU')],
)
def test_confusion_matrices_of_predictions_and_a_checkpoint_agree(
    tiny_run, tmp_path, capsys, task, unit, last
):
    run, file, printed = tiny_run(task), tmp_path / 'predictions.pkl', []
    assert run_tool('test.py', run.config, run.checkpoint, '--out', file, '--work-dir', tmp_path) == 0
    threshold = ('--score-thr', 0) if task == 'detection' else ()
    for source in (file, run.checkpoint):
        picture = tmp_path / f'deep/{source.stem}.png'
        capsys.readouterr()
        assert run_tool(MATRIX, run.config, source, '--out', picture, *threshold) == 0
        printed.append(capsys.readouterr().out.replace(str(picture), 'picture'))
        assert Image.open(picture).width > 500
    tables = [text[text.index('   ') :].splitlines() for text in printed]
    assert tables[0] == tables[1] and tables[0][0].split()[1::7] == [unit, last]
    means, summary = tables[0][-2].split(), tables[0][-1]
    found = metrics(run.work_dir)
    if task == 'classification':
        assert 'of 10 right' in summary and float(means[2]) == pytest.approx(found['accuracy/top1'], abs=0.1)
    elif task == 'segmentation':
        assert f'of {3 * 128 * 128} right' in summary
        assert float(means[2]) == pytest.approx(found['mAcc'], abs=0.1)
        assert float(means[3]) == pytest.approx(found['mIoU'], abs=0.1)
    else:
        true, predicted = (sum(int(row.split()[place]) for row in tables[0][1:11]) for place in (1, 2))
        assert true == sum(len(digits(run.config.parent / 'scenes', image)) for image in (1, 2, 3))
        assert predicted == sum(len(each['pred_instances']['scores']) for each in read_predictions(file))


def test_confusion_matrix_needs_images_with_classes(tiny_run, tmp_path, failure):
    run, out = tiny_run('classification'), ('--out', tmp_path / 'matrix.png')
    config = tmp_path / 'none.py'
    config.write_text(f"_base_ = '{run.config}'\ntest_dataloader = None\n")
    assert 'has no test set of images with classes' in failure(MATRIX, config, run.checkpoint, *out)
    error = failure(MATRIX, run.config, run.checkpoint, '--score-thr', 0.5, *out)
    assert error.endswith(f'are of boxes, which {run.config} has not: leave them out')
    assert run_tool(MATRIX, run.config, run.checkpoint, '--out', tmp_path / 'matrix.xyz') == 2
    assert run_tool(MATRIX, run.config, run.checkpoint, '--score-thr', 'high', *out) == 2


def test_pictures_are_placed_row_by_row_on_a_contact_sheet(tmp_path, failure):
    folder, out = tmp_path / 'pictures', tmp_path / 'new/sheet.png'
    assert 'pictures does not exist' in failure(SHEET, folder, '--out', out)
    (folder / 'b').mkdir(parents=True)
    assert 'holds no .jpeg or' in failure(SHEET, folder, '--out', out)
    for name, colour, width in (('a', 'red', 80), ('b/c', 'lime', 80), ('d', 'blue', 40)):
        Image.new('RGB', (width, 10), colour).save(folder / f'{name}.png')
    assert run_tool(SHEET, folder, '--out', out, '--header', 'left', 'right') == 0
    page, top = np.asarray(Image.open(out)), GAP + 2 * LINE
    assert page.shape == (top + 2 * (LINE + 10 + GAP), 2 * 80 + 3 * GAP, 3)
    for row, column, width, colour in (
        (0, GAP, 80, (255, 0, 0)),
        (0, 2 * GAP + 80, 80, (0, 255, 0)),
        (1, GAP + 20, 40, (0, 0, 255)),  # in the middle of its cell
    ):
        y = top + row * (LINE + 10 + GAP) + LINE
        assert (page[y : y + 10, column : column + width] == colour).all()
        assert (page[y - LINE : y - 2] < 100).any(), 'its name'
    names = page[GAP + LINE : top, GAP : GAP + 80].min((0, 2))
    assert names[:40].min() < 100 and names[40:].min() < 100, 'a text above each half'
    assert run_tool(SHEET, folder, '--out', out, '--count', 1, '--scale', 2) == 0
    assert Image.open(out).size == (160 + 2 * GAP, GAP + LINE + LINE + 20 + GAP)

    (folder / 'e.png').write_bytes(b'no picture')
    assert 'e.png cannot be read' in failure(SHEET, folder, '--out', out)
    assert 'must be positive, got 8, 0, 1.0' in failure(SHEET, folder, '--out', out, '--columns', 0)


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_a_data_set_is_shown_after_augmentation_with_its_annotations(tiny_run, tmp_path, task):
    run, out, tool = tiny_run(task), tmp_path / 'sheet.png', load_tool(BROWSE)
    texts = {}

    def sheet(title, pictures, columns):
        texts.update(text.split('\n') for text, _ in pictures)
        return draw_sheet(title, pictures, columns)

    tool.sheet = sheet
    with patch('sys.argv', [BROWSE, str(run.config), '--split', 'val', '--out', str(out)]):
        tool.main()
    assert Image.open(out).width > 900 and np.asarray(Image.open(out)).std() > 10
    if task == 'classification':
        assert texts == {f'val/{name}/{name}0.png': f'32 x 32: {name}' for name in CLASSES}
        return
    assert sorted(texts) == [f'images/validation/0000{index}.jpg' for index in (1, 2, 3)]
    for name, text in texts.items():
        boxes = digits(run.config.parent / 'scenes', int(Path(name).stem))
        if task == 'detection':
            counts = [f'{boxes.count(d)} x {d}' if boxes.count(d) > 1 else d for d in sorted({*boxes})]
            assert text == f'128 x 128: {", ".join(counts)}'
        else:
            assert text == f'128 x 128: {", ".join(["background", *sorted({*boxes})])}'


def digits(scenes: Path, image: int) -> list[str]:
    """The annotated digits of a validation scene."""
    content = json.loads((scenes / 'annotations/validation.json').read_text())
    names = {each['id']: each['name'] for each in content['categories']}
    found = [box for box in content['annotations'] if box['image_id'] == image]
    return [names[box['category_id']] for box in found]


def test_a_config_without_images_cannot_be_browsed(tiny_run, tmp_path, failure):
    config, out = tmp_path / 'none.py', ('--out', tmp_path / 'sheet.png')
    config.write_text(f"_base_ = '{tiny_run('classification').config}'\ntest_dataloader = None\n")
    assert 'has no images in a test_dataloader: give' in failure(BROWSE, config, '--split', 'test', *out)


def test_colours_are_those_of_the_file():
    blue_green_red = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(3, 1, 1)
    pixels = load_tool(BROWSE).pixels
    assert pixels(blue_green_red).tolist() == [[[30, 20, 10]]]
    assert pixels(torch.tensor([[[-1.0, 1.0]]])).tolist() == [[[0] * 3, [255] * 3]]
