"""The code blocks of the pages, and the one mark that keeps a block from being run.

Python and shell blocks run in the order of their page. A comment before the fence, which only the source
shows, says why a block does not: ``<!-- not run: trains for a day -->``. A Python block whose first line
names a file (``# configs/own/NAME.py``) is that file.
"""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SHELL = ('shell', 'bash')
OTHER = ('', 'cpp', 'bibtex', 'yaml', 'json', 'text', 'markdown')  # shown, never run
_BLOCK = re.compile(
    r'(?:^ *<!-- not run: (?P<reason>.+?) -->\n)?'
    r'^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^ *(?P=fence)$',
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its code without the indentation of the fence, and why it is not run, or None."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'

    @property
    def file(self) -> str | None:
        """Path of the file that a Python block is."""
        named = re.match(r'# ([\w/.-]+\.py)\n', self.code)
        return named[1] if named else None


def find_blocks(page: str, text: str) -> list[Block]:
    blocks = []
    for match in _BLOCK.finditer(text):
        line = text[: match.start('indent')].count('\n') + 1
        code = re.sub(rf'^{match["indent"]}', '', match['code'], flags=re.MULTILINE)
        blocks.append(Block(page, line, match['language'].strip(), code, match['reason']))
    return blocks


_LIST = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', '--', '*.md']
_NAMES = subprocess.run(_LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
TEXTS = {name: (ROOT / name).read_text() for name in sorted(_NAMES) if name}  # of every page by its path
PAGES = {name: find_blocks(name, text) for name, text in TEXTS.items()}
