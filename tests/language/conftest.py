from pathlib import Path

import pytest

from .tiny import write_model


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    """A tiny Mamba and its tokenizer, as save_pretrained writes them."""
    return write_model(tmp_path_factory.mktemp('mamba'))
