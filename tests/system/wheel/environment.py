"""A fresh environment that borrows installed packages, and nothing else, from this one."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def with_dependencies(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions and what they require, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
                waiting.append(requirement.name)
    return found


def create(folder: Path, borrowed: Iterable[str]) -> Path:
    """A virtual environment in ``folder`` with links to distributions and what they require; its Python."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    links = folder / 'borrowed'
    links.mkdir()
    for distribution in with_dependencies(borrowed).values():
        for top in {path.parts[0] for path in distribution.files} - {'..', '__pycache__'}:
            link = links / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    (packages,) = folder.glob('lib/python*/site-packages')
    (packages / 'borrowed.pth').write_text(f'{links}\n')
    return folder / 'bin/python'
