"""Run the steps of a Dockerfile in a clean root file system, where there is no Docker engine.

python docker/prove.py docker/Dockerfile.cpu FOLDER [--arg EXTRA=...]

Each stage starts from a Debian 12 that debootstrap has just made; the instructions are read from the file and
carried out with chroot. Needs root, debootstrap, 15 GB and the network.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[1]
# As an engine does: the network's set-up reaches the build.
NETWORK = re.compile(r'(PIP_(INDEX_URL|DEFAULT_TIMEOUT)|https?_proxy|no_proxy)', re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """Keyword and rest of each instruction."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r'\$\{?(\w+)\}?', lambda match: variables.get(match[1], ''), text)


class Stage:
    """A root file system and what the instructions so far have set."""

    def __init__(self, root: Path, variables: dict[str, str]):
        self.root, self.variables, self.arguments = root, {}, dict(variables)
        self.variables['PATH'] = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
        if 'PIP_CERT' in os.environ:
            shutil.copy(os.environ['PIP_CERT'], root / 'etc/authorities.pem')
            self.variables['PIP_CERT'] = '/etc/authorities.pem'
        self.shell, self.folder, self.user = ['/bin/sh', '-c'], '/', '0'

    def inside(self, path: str) -> Path:
        return self.root / os.path.join(self.folder, path).lstrip('/')

    def run(self, command: list[str]) -> None:
        network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
        variables = {**network, **self.arguments, **self.variables, 'HOME': '/tmp'}
        settings = [f'{name}={value}' for name, value in variables.items() if value]
        inner = f'cd {shlex.quote(self.folder)} && exec env -i {shlex.join(settings + command)}'
        enter = ['chroot', f'--userspec={self.user}:{self.user}', str(self.root), '/bin/sh', '-c', inner]
        mounts = f'mount -t proc proc {self.root}/proc && mount --rbind /dev {self.root}/dev'
        # The mounts end with the process.
        namespace = ['unshare', '--mount', '--propagation', 'private', '/bin/sh', '-c']
        subprocess.run([*namespace, f'{mounts} && exec {shlex.join(enter)}'], check=True)

    def copy(self, arguments: str, stages: dict[str, 'Stage']) -> None:
        *sources, target = [word for word in arguments.split() if not word.startswith('--')]
        source_stage = re.search(r'--from=(\S+)', arguments)
        for source in sources:
            if source_stage:
                place = stages[source_stage[1]].root / source.lstrip('/')
                shutil.copytree(place, self.inside(target), symlinks=True, dirs_exist_ok=True)
                continue
            listed = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', source]
            names = subprocess.run(listed, cwd=CONTEXT, capture_output=True, text=True, check=True).stdout
            for name in filter(None, names.split('\0')):
                if not (CONTEXT / name).is_file():
                    continue
                end = self.inside(target) / (name if source == '.' else Path(name).relative_to(source))
                end.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CONTEXT / name, end)


def clean_root(folder: Path) -> Path:
    """Debian 12 with nothing but its essential packages, and this machine's way into the network."""
    root = folder / 'debian'
    if not root.exists():
        draft = folder / 'debian.draft'
        shutil.rmtree(draft, ignore_errors=True)
        subprocess.run(['debootstrap', '--variant=minbase', 'bookworm', draft], check=True)
        for file in ('etc/resolv.conf', 'etc/hosts'):
            shutil.copy(Path('/', file), draft / file)
        draft.rename(root)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dockerfile', type=Path)
    parser.add_argument('folder', type=Path, help='where the root file systems go')
    parser.add_argument('--arg', action='append', default=[], metavar='NAME=VALUE', help='build argument')
    args = parser.parse_args()
    given = dict(setting.split('=', 1) for setting in args.arg)
    args.folder.mkdir(parents=True, exist_ok=True)
    folder, stages, stage, shared = args.folder.resolve(), {}, None, {}
    begin = time.monotonic()
    for keyword, rest in instructions(args.dockerfile.read_text()):
        print(f'[{time.monotonic() - begin:.0f} s] {keyword} {rest}', flush=True)
        if keyword == 'ARG':
            name, _, value = rest.partition('=')
            (shared if stage is None else stage.arguments)[name] = given.get(name, value.strip('"'))
        elif keyword == 'FROM':
            image, *name = re.split(r'\s+AS\s+', expand(rest, shared))
            if not image.startswith('debian:12'):
                sys.exit(f'prove.py: a stage starts from {image}, and only Debian 12 can be made here')
            name = name[0] if name else 'final'
            root = folder / name
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(['cp', '-a', clean_root(folder), root], check=True)
            stage = stages[name] = Stage(root, {})
        elif keyword == 'ENV':
            for word in shlex.split(rest):
                name, _, value = word.partition('=')
                stage.variables[name] = expand(value, stage.variables)
        elif keyword == 'SHELL':
            stage.shell = re.findall(r'"([^"]*)"', rest)
        elif keyword == 'WORKDIR':
            stage.folder = rest
            stage.inside('.').mkdir(parents=True, exist_ok=True)
        elif keyword == 'COPY':
            stage.copy(rest, stages)
        elif keyword == 'RUN':
            stage.run([*stage.shell, rest])
        elif keyword == 'USER':
            stage.user = rest
        elif keyword == 'CMD':
            stage.run(re.findall(r'"([^"]*)"', rest))
        else:
            sys.exit(f'prove.py: {keyword} is not known here')
    print(f'[{time.monotonic() - begin:.0f} s] every step ran', flush=True)


if __name__ == '__main__':
    main()
