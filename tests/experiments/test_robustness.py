import measure
import numpy as np
import pytest
import robustness
import torch

from grootv.ops import breadth_first_order
from grootv.visualization.blocks import BlockTree


def test_corruptions_by_hand():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    assert robustness.translate(picture)[:, :, 0].tolist() == [[0, 0, 42], [126, 126, 168]]
    assert robustness.brightness(picture, 0.5)[0, 1].tolist() == [21, 28, 35]
    assert robustness.gaussian_noise(picture, 0, 1).tolist() == picture.tolist()
    one, two = robustness.gaussian_noise(picture, 20, 1), robustness.gaussian_noise(picture, 20, 2)
    assert (one != two).any() and (one == robustness.gaussian_noise(picture, 20, 1)).all()


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
    assert found['logits'] == 1  # off by 5 where the norm is 5
    assert found['changed_predictions'] == 0.5 and found['accuracy'] == 50


def test_record_of_a_tiny_classifier(classifier, tmp_path):
    settings = ['--metrics', 'euclidean', '--tree-per', 'stage', '--roots', 'last', '--count', '5']
    robustness.main([str(classifier.config), str(classifier.checkpoint), *settings, '--out', str(tmp_path)])
    about, rows = measure.read(tmp_path / 'robustness.jsonl')
    assert about['images'] == 5
    own, other = 'cosine, block, first', 'euclidean, stage, last'
    found = robustness.by_setting(rows)
    assert [*found[own]] == [*found[other]] == ['none', *robustness.ROWS]
    assert found[own]['none']['changed_edges'] == 0 < found[other]['none']['changed_edges']
    noise = [found[own][f'gaussian_noise, deviation {each}']['changed_edges'] for each in (2, 40)]
    assert 0 < noise[0] < noise[1]
    assert found[own]['float16 autocast']['logits'] < found[own]['bfloat16 autocast']['logits'] < 0.2
    stress = {row['input']: row for row in rows if row.get('metric') == 'cosine'}
    assert [name for name, row in stress.items() if not row['finite']] == ['one NaN pixel', 'all NaN']
    assert (stress['all NaN']['distinct_weights'], stress['all NaN']['depth']) == (1, 7 + 7)
    page = next(tmp_path.glob('*.md')).read_text()
    assert f'| {other} ' in page and '1 of 112' in page


def test_bad_requests_are_reported(classifier, tmp_path):
    config, checkpoint, out = str(classifier.config), str(classifier.checkpoint), ['--out', str(tmp_path)]
    with pytest.raises(robustness.UserError, match='--count must be 1 or more, got 0'):
        robustness.main([config, checkpoint, '--count', '0', *out])
    with pytest.raises(robustness.UserError, match='is no classifier'):
        robustness.main([config, checkpoint, '--cfg-options', 'default_scope=mmdet', *out])
