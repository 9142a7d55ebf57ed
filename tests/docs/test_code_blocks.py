"""Every code block of every page runs as it is shown, or says in the page's source why it does not."""

import subprocess
import uuid
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.docs import commands
from tests.docs.blocks import OTHER, PAGES, SHELL, TEXTS, Block, find_blocks
from tests.tools.tiny_run import run_tool

BLOCKS = [block for blocks in PAGES.values() for block in blocks]
RUNNING = {
    page: [b for b in blocks if b.reason is None and b.language in ('python', *SHELL)]
    for page, blocks in PAGES.items()
    if not page.startswith('experiments/results/')  # records of what was run
}


def written_files(page: str) -> set[str]:
    return {block.file for block in PAGES[page] if block.file}


def is_config(block: Block) -> bool:
    return '_base_ =' in block.code


def run_python(block: Block, folder: Path, names: dict) -> None:
    if not is_config(block):
        exec(compile(block.code, str(block), 'exec'), names)
        return
    # Without a name, it is one of the configs beside the page.
    path = folder / (block.file or f'configs/own/{uuid.uuid4().hex}.py')
    path.parent.mkdir(exist_ok=True)
    code = block.code if block.file else block.code.replace("'./", f"'{folder / Path(block.page).parent}/")
    path.write_text(code)
    assert Config.fromfile(path).model


def run_shell(block: Block, folder: Path) -> None:
    for words in commands.commands(block.code):
        tool = words[0] == 'python' and words[1].startswith('tools/')
        if tool:  # in this process, for the imports take long
            assert run_tool(words[1].removeprefix('tools/'), *words[2:]) == 0, ' '.join(words)
        else:
            subprocess.run(words, cwd=folder, check=True)


@pytest.mark.parametrize('page', [page for page, blocks in RUNNING.items() if blocks])
def test_the_blocks_of_a_page_run_in_their_order(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(checkout / 'tools')  # where Python finds what lies beside train.py
    names = {'__name__': '__main__'}
    for block in RUNNING[page]:
        if block.language == 'python':
            run_python(block, checkout, names)
        else:
            run_shell(block, checkout)


@pytest.mark.parametrize('page', PAGES)
def test_the_commands_of_a_page_exist_and_take_their_arguments(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    for block in PAGES[page]:
        if block.language in SHELL:
            checked = subprocess.run(['bash', '-n'], input=block.code, capture_output=True, text=True)
            assert checked.returncode == 0, f'{block}: {checked.stderr}'
            for words in commands.commands(block.code):
                fault = commands.fault(words, written_files(page))
                assert fault is None, f'{block}: {fault}'


def test_a_block_that_is_not_run_is_python_at_least():
    for block in BLOCKS:
        if block.language == 'python':
            compile(block.code, str(block), 'exec')


def test_every_block_names_a_language_that_is_run_or_one_that_is_shown():
    for block in BLOCKS:
        directive = block.language.startswith('{')
        assert directive or block.language in ('python', *SHELL, *OTHER), f'{block}: {block.language}'


def test_a_mark_stands_right_before_a_block():
    for page, text in TEXTS.items():
        shown = sum(block.code.count('<!-- not run') for block in PAGES[page])
        marked = sum(block.reason is not None for block in PAGES[page])
        assert text.count('<!-- not run') == marked + shown, page


def test_blocks_are_found_with_their_marks():
    text = """a
```python
x = 1
```
- b

  <!-- not run: too long -->
  ```shell
  make
    test
  ```
"""
    first, second = find_blocks('page.md', text)
    assert (first.line, first.language, first.code, first.reason) == (2, 'python', 'x = 1\n', None)
    assert (second.line, second.code, second.reason) == (8, 'make\n  test\n', 'too long')


@pytest.mark.parametrize(
    ('command', 'told'),
    [
        ('make demos', 'make has no target demos'),
        ('pip install ".[detector]"', 'there is no extra detector'),
        ('python tools/train.py configs/none.py', 'configs/none.py does not exist'),
        ('python tools/train.py CONFIG --epochs 3', 'unrecognized arguments: --epochs 3'),
        ('bash tools/dist_train.sh CONFIG 8 --epochs 3', 'unrecognized arguments: --epochs 3'),
        ('bash tools/slurm_test.sh PARTITION JOB CONFIG', 'the following arguments are required: checkpoint'),
    ],
)
def test_a_wrong_command_is_told(command, told):
    (words,) = commands.commands(command)
    assert told in commands.fault(words)


def test_a_right_command_is_not():
    code = 'A=1 make demo B=2  # c\nbash tools/dist_test.sh CONFIG CHECKPOINT \\\n    8 --tta && ls\n'
    found = commands.commands(code)
    assert [words[0] for words in found] == ['make', 'bash']
    assert [commands.fault(words) for words in found] == [None, None]
