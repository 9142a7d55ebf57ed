"""The demos with tools that only write their results, and the notebook with a checkpoint."""

import importlib
import json
import os
import subprocess
import sys

import nbformat
import pytest
import torch
from mmengine.config import Config
from nbclient import NotebookClient

from grootv.checkpoint import build_model
from tests.tools.tiny_run import ROOT

METRICS = {'accuracy/top1': 98.765, 'mIoU': 81.5, 'coco/bbox_mAP_50': 0.654, 'coco/segm_mAP_50': 0.543}


@pytest.fixture
def demos(tmp_path, monkeypatch):
    """Run a demo below an empty folder, with the losses that a training logs; the titles of its steps."""
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    steps, digits, scenes = map(importlib.import_module, ('steps', 'train_digits', 'train_scenes'))
    calls, losses = [], []

    def step(title: str, *command: object, show: str = '', label: str = '') -> None:
        calls.append(title)
        command = [str(part) for part in command]
        assert (ROOT / command[0]).is_file()
        if command[0].endswith('/digits.py'):
            write(f'{digits.IMAGE}/0008.png', '')
        if title == 'Training':
            work_dir = command[command.index('--work-dir') + 1]
            records = [json.dumps(dict(loss=loss, step=i)) for i, loss in enumerate(losses)]
            write(f'{work_dir}/20300101/vis_data/scalars.json', '\n'.join(records))
            write(f'{work_dir}/20300101/20300101.log', '')
            options = command[command.index('--cfg-options') + 1 :] if '--cfg-options' in command else ()
            write(f'{work_dir}/{steps.Run(command[1], options=tuple(options)).checkpoint.name}', '')
        if '--out' in command:
            write(command[command.index('--out') + 1], json.dumps(METRICS))

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for module in (steps, digits, scenes):
        monkeypatch.setattr(module, 'step', step)
        monkeypatch.setattr(module, 'ROOT', tmp_path, raising=False)

    def main(*args: str, logged: tuple[float, ...] = (3.0, 2.0, 1.0)) -> list[str]:
        calls.clear()
        losses[:] = logged
        monkeypatch.setattr(sys, 'argv', ['demo', *args])
        (scenes if args else digits).main()
        return list(calls)

    return main


def test_a_second_call_makes_what_is_missing_or_old_and_prints_the_same(demos, capsys, tmp_path):
    titles = ['Data', 'Training', 'Evaluation', 'Curves', 'Confusion matrix', 'Spanning tree']
    assert demos() == titles
    first = capsys.readouterr().out
    assert '98.77 % top-1' in first and 'work_dirs/grootv-pico_digits/epoch_20.pth' in first
    assert demos() == ['Data']
    assert first.strip() in capsys.readouterr().out
    os.utime(tmp_path / 'work_dirs/grootv-pico_digits/metrics.json', (1, 1))
    assert demos() == ['Data', 'Evaluation']


def test_scenes_train_from_the_classifier_and_print_where_everything_is(demos, capsys):
    titles = ['Training', 'Evaluation', 'Curves', 'Predictions', 'Spanning tree']
    assert demos('segmentation', '--short') == ['Data', 'Data', 'Training', *titles]
    out = capsys.readouterr().out
    for text in ('mIoU, %      81.500', 'short-segmentation/iter_40.pth', '3.000 at first, 1.000 at last'):
        assert text in out
    assert demos('segmentation', '--short') == ['Data', 'Data']


def test_a_loss_that_does_not_fall_or_a_step_that_fails_ends_the_demo(demos, monkeypatch):
    with pytest.raises(SystemExit, match=r'the loss did not fall, 1\.000 at first and 3\.000 at last'):
        demos('detection', '--short', logged=(1.0, 2.0, 3.0))
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    with pytest.raises(SystemExit, match='ended with status 3; start the demo again'):
        importlib.import_module('steps').step('Data', '-c', 'raise SystemExit(3)')


def test_without_its_packages_the_page_names_the_extra():
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['app.py']; import app; app.cli.run(app.main)"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT / 'demo', capture_output=True, text=True)
    assert done.returncode == 1
    assert 'app.py: the page needs the packages of the extra app' in done.stderr.splitlines()[-1]


def test_the_notebook_runs_and_keeps_its_outputs(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / 'demo/grootv_tour.ipynb', as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    kept = [sorted(output.get('data', {'text': ''})) for cell in code for output in cell.outputs]

    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    checkpoint = tmp_path / 'work_dirs/grootv-pico_digits/epoch_20.pth'
    checkpoint.parent.mkdir(parents=True)
    config = Config.fromfile(ROOT / 'configs/demo/grootv-pico_digits.py')
    torch.save(build_model(config).state_dict(), checkpoint)
    monkeypatch.setenv('PYDEVD_DISABLE_FILE_VALIDATION', '1')
    resources = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(notebook, timeout=120, kernel_name='python3', resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    text = ''.join(output.get('text', '') for output in outputs)
    pictures = sum('image/png' in output.get('data', {}) for output in outputs)
    assert pictures == sum('image/png' in output for output in kept) == 5
    assert 'epoch_20.pth: ' in text
