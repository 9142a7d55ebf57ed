"""tools/deployment/torch2export.py: what it writes runs without the package, with eager's outputs."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from grootv.errors import UserError
from grootv.export import Logits, compare, deployable, export_program, random_images
from grootv.models import GrootV
from tests.ops.cases import assert_same
from tests.tools.tiny_run import load_tool, run_tool, write_config

NAME = 'deployment/torch2export.py'
PICO = dict(embed_dims=8, depths=[1, 1, 1, 1])
# AOTInductor takes minutes for four stages; the first one has every operator.
FIRST_STAGE = ('--aoti', '--cfg-options', 'model.backbone.out_indices=[0]', 'model.head.in_channels=8')


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, tmp_path)


@pytest.mark.parametrize('args, most', [((), '0 at most'), (FIRST_STAGE, '')])
def test_a_classifier_runs_in_a_fresh_process_with_any_size(config, tmp_path, capsys, args, most):
    path = tmp_path / 'model.pt2'
    args = ('--out', path, '--input-size', 64, 48, '--verify', *args)
    assert run_tool(NAME, config, *args) == 0
    single, small, large = capsys.readouterr().out.splitlines()[-3:]
    assert single.startswith(f'1 x 3 x 129 x 117: outputs differ by {most}')
    assert small.startswith(f'2 x 3 x 64 x 48: outputs differ by {most}')
    assert large.startswith(f'3 x 3 x 77 x 54: outputs differ by {most}')
    if '--aoti' not in args:
        assert torch.export.load(path).module()(torch.randn(5, 3, 40, 130)).shape == (5, 10)


@pytest.mark.parametrize('side', [1, 32])
def test_nothing_of_a_small_size_is_traced(config, side):
    for network in (deployable(Config.fromfile(config)), GrootV(PICO, out_indices=(1, 3)).eval()):
        program = export_program(network, side, side).module()
        for size in ((2, 96, 64), (3, 33, 71), (1, 161, 40)):
            images = random_images(*size)
            with torch.no_grad():
                assert_same(program(images), network(images))


def test_neck_of_a_classifier_is_exported_with_it():
    classifier, x = nn.Module(), torch.randn(2, 3)
    classifier.backbone, classifier.neck, classifier.head = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)
    expected = nn.Sequential(classifier.backbone, classifier.neck, classifier.head)(x)
    torch.testing.assert_close(Logits(classifier)(x), expected)


def test_outputs_that_differ_are_reported(tmp_path):
    images, found = torch.zeros(1, 3, 4, 4), [torch.ones(1, 2)]
    for expected in (torch.zeros(1, 2), torch.tensor([[torch.nan, 1]])):
        with pytest.raises(
            UserError, match=r'differs from PyTorch by (1|nan) in values up to 1 on images of 1 x 3'
        ):
            compare(tmp_path / 'm.pt2', images, found, expected, 1e-3)


def test_bad_arguments_and_a_file_that_does_not_run_apart_are_reported(config, tmp_path, failure):
    path = tmp_path / 'model.pt2'
    assert 'end it in .pt2' in failure(NAME, config, '--out', tmp_path / 'model.onnx')
    sentence = failure(NAME, config, '--out', path, '--input-size', '32', '64')
    assert '--input-size must be 33 or more each, got 32 64' in sentence and not path.exists()
    path.write_bytes(b'no archive')
    with pytest.raises(UserError, match='does not run in a fresh process: '):
        load_tool(NAME).run_apart(path, False, [])
