import captions
import measure
import numpy as np
import pytest
import torch


def test_a_caption_names_one_object():
    for number in range(10):
        picture, labels, caption = captions.scene((2, number))
        assert picture.shape == (captions.SIZE, captions.SIZE, 3) and (labels == 1).sum() > 50
        assert (caption < captions.SHAPES).sum() == 1
    assert np.array_equal(captions.scene((2, 9))[0], picture)


@pytest.mark.parametrize('name', captions.ARMS)
def test_words_reach_the_patches_but_in_two_trees(name):
    torch.manual_seed(0)
    network = captions.Network(captions.ARMS[name]).eval()
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)

    def logits(word: int) -> torch.Tensor:
        torch.manual_seed(1)  # of random trees
        return network(picture, torch.tensor([[9, word, 8, 7]]))

    assert torch.equal(logits(0), logits(1)) == (name == 'two trees, edge')


def test_from_scenes_to_page(tmp_path):
    out = tmp_path / 'captions.jsonl'
    captions.main(['--quick', '--seeds', '1', '--out', str(out)])
    assert [row['arm'] for row in measure.read(out)[1]] == list(captions.ARMS)
    assert (
        '| one random tree, edge' in out.with_suffix('.md').read_text() and out.with_suffix('.png').exists()
    )
