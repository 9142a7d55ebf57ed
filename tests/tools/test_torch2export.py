"""tools/deployment/torch2export.py: what it writes runs without the package, with eager's outputs."""

import pytest
import torch

from grootv.errors import UserError
from grootv.export import compare
from tests.tools.tiny_run import load_tool, run_tool, write_config

NAME = 'deployment/torch2export.py'
SIZE = ('--input-size', 64, 48)  # PyTorch specialises on sides of 1, and the last map halves five times


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('config')
    return write_config(folder, folder)


def test_a_classifier_runs_in_a_fresh_process_with_any_size(config, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    assert run_tool(NAME, config, '--out', path, *SIZE, '--verify') == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines[-2:]] == ['2 x 3 x 64 x 48', '3 x 3 x 77 x 54']
    assert all('differ by 0 at most' in line for line in lines[-2:])
    model = torch.export.load(path).module()
    assert model(torch.randn(5, 3, 40, 130)).shape == (5, 10)


def test_a_package_of_aotinductor_runs_in_a_fresh_process_with_any_size(config, tmp_path, capsys):
    path = tmp_path / 'model.pt2'
    assert run_tool(NAME, config, '--out', path, *SIZE, '--aoti', '--verify') == 0
    assert '3 x 3 x 77 x 54: outputs differ by' in capsys.readouterr().out


def test_outputs_that_differ_are_reported(tmp_path):
    images, found = torch.zeros(1, 3, 4, 4), [torch.ones(1, 2)]
    for expected in (torch.zeros(1, 2), torch.tensor([[torch.nan, 1]])):
        with pytest.raises(
            UserError, match=r'differs from PyTorch by (1|nan) in values up to 1 on images of 1 x 3'
        ):
            compare(tmp_path / 'm.pt2', images, found, expected, 1e-3)


def test_a_model_that_does_not_run_apart_is_reported(tmp_path):
    (tmp_path / 'm.pt2').write_bytes(b'no archive')
    with pytest.raises(UserError, match='does not run in a fresh process: '):
        load_tool(NAME).run_apart(tmp_path / 'm.pt2', False, [])


def test_bad_arguments_are_reported(config, tmp_path, capsys):
    assert run_tool(NAME, config, '--out', tmp_path / 'model.onnx') == 1
    assert 'end it in .pt2' in capsys.readouterr().err
    out = tmp_path / 'model.pt2'
    assert run_tool(NAME, config, '--out', out, '--input-size', '32', '64') == 1
    assert '--input-size must be 33 or more each, got 32 64' in capsys.readouterr().err
    assert not out.exists()
