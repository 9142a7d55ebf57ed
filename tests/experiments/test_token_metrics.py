import measure
import pytest
import token_metrics
import torch

from grootv import ops
from grootv.errors import UserError
from tests.language.tiny import mamba, tokens, write_model


def products(x, B, pairs):
    """What both tokens of every pair add to the state, (B, pairs, C * N) twice."""
    added = (x.unsqueeze(-1) * B.unsqueeze(2)).flatten(2)
    return added[:, pairs].unbind(2)


@pytest.mark.parametrize(
    'metric, definition',
    [
        ('cosine', lambda a, b: -torch.cosine_similarity(a, b, dim=-1)),
        ('euclidean', lambda a, b: (a - b).square().sum(-1)),
        ('manhattan', lambda a, b: (a - b).abs().sum(-1)),
    ],
)
def test_metrics_compare_what_tokens_add_to_the_state(metric, definition):
    x, B = torch.randn(2, 7, 5), torch.randn(2, 7, 3)
    pairs = ops.token_edges(7, 3).long()
    found = token_metrics.METRICS[metric](x, B, pairs)
    torch.testing.assert_close(found, definition(*products(x, B, pairs)))


def test_tree_by_the_cosine_is_grootls_and_others_differ():
    x, B, context = torch.randn(4, 30, 5), torch.randn(4, 30, 3), torch.tensor([[0, 20]]).expand(4, 2)
    expected = ops.token_tree(x, B, context)
    for metric in token_metrics.METRICS:
        trees = token_metrics.Trees(metric)
        parent = trees(x, B, context, 3, False).parent
        assert torch.equal(parent, expected.parent) == (metric == 'cosine')
        assert torch.equal(parent[:, 19:], expected.parent[:, 19:])  # after the context, the chain
        chain = torch.arange(1, 20)
        assert trees.chained == [pytest.approx((parent[:, :19] == chain).float().mean().item())]


def test_predictions_depend_on_what_comes_before_alone():
    network = token_metrics.Network(mamba().config, 'cosine').eval()
    first = tokens(1, 16)
    for changed in (5, 10):  # a token of the context, one that is predicted
        other = first.clone()
        other[0, changed] = other[0, changed] % 40 + 1
        differs = (network(first) != network(other)).any(1)[0]
        assert differs.tolist() == [changed < 8 + number for number in range(8)]


def test_too_few_texts_are_refused(tmp_path):
    tokenizer = token_metrics.load_tokenizer(write_model(tmp_path / 'model'))
    with pytest.raises(UserError, match='256 tokens or more, got 2'):
        token_metrics.windows(['a'], tokenizer, 16)


def test_from_texts_to_page(tmp_path):
    model = write_model(tmp_path / 'model')
    data = tmp_path / 'data'
    data.mkdir()
    texts = '[{"text": "%s"}]' % ('a word on bread ' * 300)
    for side in ('train', 'held-out'):
        (data / f'texts_{side}.json').write_text(texts)
    out = tmp_path / 'token_metrics.jsonl'
    folders = ('--model', str(model), '--data', str(data))
    token_metrics.main(['--quick', '--seeds', '1', *folders, '--out', str(out)])
    rows = measure.read(out)[1]
    assert [row['arm'] for row in rows] == list(token_metrics.ARMS)
    assert rows[0]['chained'] is None and all(0 < row['chained'] < 1 for row in rows[1:])
    assert '| manhattan' in out.with_suffix('.md').read_text() and out.with_suffix('.png').exists()
