import torch
from torch import nn

from grootv.engine import BFloat16OptimWrapper


def test_the_forward_pass_runs_in_bfloat16_and_the_weights_stay_float32():
    model = nn.Linear(4, 1)
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(2, 4))
    wrapper.update_params(output.float().sum())
    assert output.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, before - 0.1 * 2)
