import pytest

from tests.ops.cuda_backend import BACKENDS, Backend


@pytest.fixture(scope='module', params=BACKENDS)
def backend(request):
    return Backend(request.param)
