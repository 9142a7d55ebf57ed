"""The messages that the page explains are messages that the program prints."""

import ast
import re

import pytest

from tests.docs.blocks import ROOT

PAGE = (ROOT / 'docs/troubleshooting.md').read_text()
MESSAGES = re.findall(r'^- `(.+)`\\$', PAGE, re.MULTILINE)
FOLDERS = ('grootv', 'ops', 'tools')
assert len(MESSAGES) > 20
FOREIGN = {"No module named 'mmcv._ext'", 'grootv:build_tree(-1) is not a registered function/op'}


def text_of(node: ast.AST) -> str | None:
    """A string as it is written, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(text_of(part) or '…' for part in node.values)
    return None


@pytest.fixture(scope='module')
def texts() -> str:
    """Every string of the sources, a line each."""
    files = [ROOT / 'setup.py', *(f for name in FOLDERS for f in (ROOT / name).rglob('*.py'))]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return '\n'.join(text for node in nodes if (text := text_of(node)))


@pytest.mark.parametrize('message', [message for message in MESSAGES if message not in FOREIGN])
def test_message_of_the_page_is_one_of_the_program(message, texts):
    # A message may be put together from several strings.
    parts = [part.strip(' :();,') for part in re.split(r'…|: |; ', re.sub(r'^\[setup\] ', '', message))]
    assert not [part for part in parts if part and part not in texts]
