"""Build ``grootv``: the Python packages and the compiled operator library.

Environment variables:
    GROOTV_WERROR: 1 turns compiler warnings into errors (continuous integration does).
    MAX_JOBS: number of parallel compiler processes.
"""

import os
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = '0x020a000000000000'  # the oldest torch whose stable ABI the library needs: 2.10


class PlatformWheel(bdist_wheel):
    """The library uses torch's stable ABI and no Python ABI: one wheel serves every Python."""

    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2]


def sources(folder: str) -> list[str]:
    """Sources below ops/csrc, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'ops/csrc').glob(folder))


def cpu_library() -> CppExtension:
    flags = [
        '-O3',
        '-g0',
        '-std=c++20',
        '-fvisibility=hidden',
        '-ffp-contract=off',  # every processor rounds alike: trees must not depend on the machine
        '-fno-math-errno',
        '-Wall',
        '-Wextra',
        '-Wno-unused-parameter',  # torch's headers have some
        *(['-Werror'] if os.environ.get('GROOTV_WERROR') == '1' else []),
    ]
    return CppExtension(
        'grootv.ops._cpu',
        sources('*.cpp') + sources('cpu/*.cpp'),
        include_dirs=[str(ROOT / 'ops/csrc')],
        define_macros=[('TORCH_TARGET_VERSION', TORCH_TARGET_VERSION)],
        extra_compile_args={'cxx': flags},
        py_limited_api=True,  # leaves libtorch_python out of the link
    )


def requirements(name: str) -> list[str]:
    """Lines of requirements/<name>.txt, with the files it includes."""
    lines = []
    for line in (ROOT / f'requirements/{name}.txt').read_text().splitlines():
        line = line.partition('#')[0].strip()
        if line.startswith('-r '):
            lines += requirements(line.removeprefix('-r ').removesuffix('.txt'))
        elif line:
            lines.append(line)
    return lines


extras = ['classification', 'detection', 'segmentation', 'demo', 'test', 'lint']
setup(
    name='grootv',
    version='0.1.0',
    description='GrootV: vision backbones whose state-space scan runs along a spanning tree',
    python_requires='>=3.10',
    packages=['grootv.ops', *find_packages(include=['grootv', 'grootv.*'])],
    package_dir={'grootv.ops': 'ops'},
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in extras},
    ext_modules=[cpu_library()],
    cmdclass={
        'build_ext': BuildExtension.with_options(no_python_abi_suffix=True),
        'bdist_wheel': PlatformWheel,
    },
)
