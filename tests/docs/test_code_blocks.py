"""Every code block of every page runs as it is shown, or says in the page's source why it does not."""

import subprocess
import uuid
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.docs import commands
from tests.docs.blocks import OTHER, PAGES, SHELL, TEXTS, Block
from tests.tools.tiny_run import run_tool

RUNNING = {
    page: [b for b in blocks if b.reason is None and b.language in ('python', *SHELL)]
    for page, blocks in PAGES.items()
    if not page.startswith('experiments/results/')  # records of what was run
}


def run_python(block: Block, folder: Path, names: dict) -> None:
    if '_base_ =' not in block.code:
        exec(compile(block.code, str(block), 'exec'), names)
        return
    # A config without a name is one next to the page.
    path = folder / (block.file or f'configs/own/{uuid.uuid4().hex}.py')
    path.parent.mkdir(exist_ok=True)
    code = block.code if block.file else block.code.replace("'./", f"'{folder / Path(block.page).parent}/")
    path.write_text(code)
    assert Config.fromfile(path).model


def run_command(words: list[str], folder: Path) -> None:
    if words[0] == 'python' and words[1].startswith('tools/'):  # in this process: imports take long
        assert run_tool(words[1].removeprefix('tools/'), *words[2:]) == 0, ' '.join(words)
    else:
        subprocess.run(words, cwd=folder, check=True)


@pytest.mark.parametrize('page', [page for page, blocks in RUNNING.items() if blocks])
def test_blocks_of_a_page_run_in_their_order(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(checkout / 'tools')
    names = {'__name__': '__main__'}
    for block in RUNNING[page]:
        if block.language == 'python':
            run_python(block, checkout, names)
        for words in commands.commands(block.code) if block.language in SHELL else ():
            run_command(words, checkout)


@pytest.mark.parametrize('page', PAGES)
def test_blocks_of_a_page_are_valid_and_marks_precede_one(page, checkout, monkeypatch):
    """Of a known language; scripts exist and take their arguments, also in blocks that are not run."""
    monkeypatch.chdir(checkout)
    written = {block.file for block in PAGES[page] if block.file}
    for block in PAGES[page]:
        if block.language == 'python':
            compile(block.code, str(block), 'exec')
        elif block.language in SHELL:
            checked = subprocess.run(['bash', '-n'], input=block.code, capture_output=True, text=True)
            assert checked.returncode == 0, f'{block}: {checked.stderr}'
            for words in commands.commands(block.code):
                assert commands.fault(words, written) is None, block
        else:
            assert block.language.startswith('{') or block.language in OTHER, block
    shown = sum(block.code.count('<!-- not run') for block in PAGES[page])
    marked = sum(block.reason is not None for block in PAGES[page])
    assert TEXTS[page].count('<!-- not run') == marked + shown
