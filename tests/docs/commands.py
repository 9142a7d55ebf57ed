"""What is checked of a command without running it: its script, arguments, configs and targets exist."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from unittest import mock

from tests.docs.blocks import ROOT

# Shell scripts that pass their arguments to a tool, except some before the first ones and some after these.
LAUNCHERS = {
    'tools/dist_train.sh': ('tools/train.py', 0, 1, 1),
    'tools/dist_test.sh': ('tools/test.py', 0, 2, 1),
    'tools/slurm_train.sh': ('tools/train.py', 2, 1, 1),
    'tools/slurm_test.sh': ('tools/test.py', 2, 2, 0),
}
_LINES = re.findall(r'^([a-z][\w -]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
TARGETS = {target for line in _LINES for target in line.split()}
EXTRAS = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}


class _Parsed(BaseException):
    """The arguments of a script parse."""


def commands(code: str) -> list[list[str]]:
    """The words of every command of a shell block, without assignments before it."""
    found = []
    for line in re.findall(r'(?:[^\n"]|"[^"]*")+', code.replace('\\\n', ' ')):
        words = shlex.split(line, comments=True)
        for separator in ('&&', '|', '>'):
            words = words[: words.index(separator)] if separator in words else words
        while words and re.match(r'\w+=', words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def parse(script: str, arguments: list[str]) -> str | None:
    """Run a script up to the parsing of its arguments; what is wrong with them, or None."""
    original, printed = ArgumentParser.parse_args, io.StringIO()

    def parse_args(parser, args=None, namespace=None):
        original(parser, args, namespace)
        raise _Parsed

    with (
        mock.patch.object(ArgumentParser, 'parse_args', parse_args),
        mock.patch.object(sys, 'argv', [script, *arguments]),
        mock.patch.object(sys, 'path', [str((ROOT / script).parent), *sys.path]),
        contextlib.redirect_stderr(printed),
        contextlib.redirect_stdout(printed),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        except _Parsed:
            return None
        except SystemExit:
            return f'{script}: {printed.getvalue().strip().splitlines()[-1:]}'
    return f'{script} takes no arguments'


def fault(words: list[str], written: set[str] = frozenset()) -> str | None:
    """What is wrong with a command, or None; ``written`` are files that blocks of the page write."""
    for word in words:
        path = word.rpartition('=')[2]
        named = re.fullmatch(r'(configs|tools|demo|experiments|requirements|tests)/[\w./-]+\.\w+', path)
        if named and path not in written and not (ROOT / path).is_file():
            return f'{path} does not exist'
    program, *arguments = words
    if program == 'make':
        targets = [word for word in arguments if '=' not in word]
        return next((f'make has no target {name}' for name in targets if name not in TARGETS), None)
    if program == 'pip':
        extras = [name for word in arguments for name in re.findall(r'\[(.+)\]', word)]
        return next((f'there is no extra {name}' for name in extras if name not in EXTRAS), None)
    if program == 'python' and re.fullmatch(r'(tools|demo|experiments)/.*\.py', arguments[0]):
        return parse(arguments[0], arguments[1:])
    if program == 'bash' and arguments[0] in LAUNCHERS:
        tool, before, kept, dropped = LAUNCHERS[arguments[0]]
        rest = arguments[1 + before :]
        return parse(tool, rest[:kept] + rest[kept + dropped :])
    return None
