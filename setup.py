"""Build ``grootv``: the Python packages and the compiled operators, libraries for CPU, ONNX Runtime and CUDA.

Environment variables:
    FORCE_CUDA: 1 builds the CUDA library or fails, 0 leaves it out. Otherwise it is built where nvcc is
        found and fits the CUDA version of torch; a GPU or a CUDA build of torch is not needed.
    TORCH_CUDA_ARCH_LIST: GPU architectures of the CUDA library. Unless set, those of 8.0, 9.0, 10.0 and 12.0
        that nvcc knows, and PTX of the newest, which later GPUs compile.
    GROOTV_DEBUG: 1 builds for a debugger: -O0 -g, one copy of every function.
    GROOTV_PREBUILT: 1 takes the libraries that are in ops/ already (an editable install).
    GROOTV_WERROR: 1 turns compiler warnings into errors (continuous integration does).
    MAX_JOBS: number of parallel compiler processes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, include_paths

ROOT = Path(__file__).parent
# ninja is installed next to the interpreter, which may be called without its folder in PATH.
os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', os.defpath)])
MACOS = sys.platform == 'darwin'
TORCH_TARGET_VERSION = '0x020a000000000000'  # the oldest torch whose stable ABI the library needs: 2.10


class PlatformWheel(bdist_wheel):
    """The library uses torch's stable ABI and no Python ABI: one wheel serves every Python."""

    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2]


class BuildLibraries(BuildExtension):
    """The libraries share sources, so each keeps its objects in a folder of its own."""

    def build_extension(self, ext):
        folder = self.build_temp
        self.build_temp = os.path.join(folder, f'{ext.name}-debug' if DEBUG else ext.name)
        super().build_extension(ext)
        self.build_temp = folder


def sources(folder: str) -> list[str]:
    """Sources below ops/csrc, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'ops/csrc').glob(folder))


DEBUG = os.environ.get('GROOTV_DEBUG') == '1'
WERROR = os.environ.get('GROOTV_WERROR') == '1'
HOST_FLAGS = [
    *(['-O0', '-g', '-DGROOTV_DEBUG'] if DEBUG else ['-O3', '-g0']),
    '-std=c++20',
    '-fvisibility=hidden',
    '-ffp-contract=off',  # every processor rounds alike: trees must not depend on the machine
    '-fno-math-errno',
    '-Wall',
    '-Wextra',
    '-Wno-unused-parameter',  # torch's headers have some
    '-Wno-psabi',  # SIMD vectors are passed to inlined functions only
    *(['-Werror'] if WERROR else []),
]
NVCC_FLAGS = [
    *(['-O0', '-g', '-G'] if DEBUG else ['-O3']),
    '-std=c++20',
    '-fmad=false',  # as -ffp-contract=off
    '-Xcompiler=-fvisibility=hidden',
    *(['-Werror=all-warnings'] if WERROR else []),
]


def extension(name: str, files: list[str], macros: tuple = (), libraries=(), **options) -> CppExtension:
    return CppExtension(
        f'grootv.ops.{name}',
        files,
        include_dirs=[str(ROOT / 'ops/csrc')],
        define_macros=[('TORCH_TARGET_VERSION', TORCH_TARGET_VERSION), *macros],
        extra_compile_args={'cxx': HOST_FLAGS, 'nvcc': NVCC_FLAGS},
        py_limited_api=True,  # leaves libtorch_python out of the link
        # First, because torch exports parts of the newer libstdc++ that it was built with.
        libraries=[*([] if MACOS else ['stdc++']), *libraries],
        **options,
    )


def cuda_toolkit() -> tuple[Path | None, str]:
    """Root of the CUDA toolkit to build with, or None and the reason."""
    if os.environ.get('FORCE_CUDA') == '0':
        return None, 'FORCE_CUDA=0'
    nvcc = Path(CUDA_HOME or '') / 'bin/nvcc'
    if not nvcc.is_file():
        return None, 'nvcc was not found; set CUDA_HOME to build it'
    found = re.search(r'release (\d+)', subprocess.check_output([nvcc, '--version'], text=True)).group(1)
    wanted = (torch.version.cuda or found).split('.')[0]
    if found != wanted:
        return None, f'nvcc is of CUDA {found} and torch of CUDA {wanted}'
    # nvcc may be a script elsewhere; what it would run names its own root.
    steps = subprocess.run([nvcc, '--dryrun', '-x', 'cu', '-c', os.devnull], capture_output=True, text=True)
    return Path(re.search(r'^#\$ TOP=(.+)$', steps.stderr, re.MULTILINE).group(1)).resolve(), ''


def known_architectures(toolkit: Path) -> str:
    """The architectures to build for unless TORCH_CUDA_ARCH_LIST is set, as that writes them."""
    listed = subprocess.check_output([toolkit / 'bin/nvcc', '--list-gpu-arch'], text=True).split()
    wanted = ('8.0', '9.0', '10.0', '12.0')
    return ';'.join(name for name in wanted if f'compute_{name.replace(".", "")}' in listed) + '+PTX'


def onnxruntime_library() -> Extension:
    """The CPU kernels on images as operators of ONNX Runtime, linked with neither torch nor ONNX Runtime."""
    exports = ROOT / 'ops/csrc/onnxruntime/exports.map'
    only = [f'-Wl,--version-script={exports}', '-Wl,-z,defs']  # of GNU's linker
    return Extension(
        'grootv.ops._onnxruntime',
        sources('onnxruntime/*.cpp') + [path for path in sources('cpu/*.cpp') if '/token_' not in path],
        include_dirs=[str(ROOT / 'ops/csrc'), *include_paths()],  # of torch, what is header-only
        define_macros=[('GROOTV_ONNXRUNTIME', None)],
        extra_compile_args={'cxx': HOST_FLAGS},
        extra_link_args=['-Wl,-exported_symbol,_RegisterCustomOps'] if MACOS else only,
    )


def libraries() -> list[Extension]:
    """The libraries for the CPU, and the CUDA library where it can be built; prints the switches."""
    built = [extension('_cpu', sources('*.cpp') + sources('cpu/*.cpp')), onnxruntime_library()]
    toolkit, reason = cuda_toolkit()
    if toolkit is None:
        if os.environ.get('FORCE_CUDA') == '1':
            raise SystemExit(f'setup.py: FORCE_CUDA=1 asks for the CUDA library, but {reason}')
        print(f'grootv: no CUDA library: {reason}')
        return built
    architectures = os.environ.setdefault('TORCH_CUDA_ARCH_LIST', known_architectures(toolkit))
    print(f'grootv: CPU and CUDA libraries, nvcc of {toolkit}, architectures {architectures}')
    cuda = extension(
        '_cuda',
        sources('cuda/**/*.cu'),
        macros=(('USE_CUDA', None),),  # declares the current stream of torch's C interface
        # CUDA's runtime is linked in, because torch may be built with another one, or with none here.
        library_dirs=[str(path) for path in (toolkit / 'lib64', toolkit / 'lib') if path.is_dir()],
        libraries=['cudart_static', 'rt', 'dl', 'pthread'],
        # libtorch in place of libtorch_cuda, which a CPU build of torch does not have.
        extra_link_args=['-Wl,--no-as-needed', '-ltorch', '-Wl,--as-needed', '-Wl,--exclude-libs,ALL'],
    )
    return [*built, cuda]


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


tasks = ['classification', 'detection', 'segmentation', 'language']
extras = [*tasks, 'demo', 'deployment', 'frameworks', 'tracking', 'app', 'docs', 'test', 'lint']
setup(
    name='grootv',
    version='0.1.0',
    description='GrootV: vision backbones whose state-space scan runs along a spanning tree',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Environment :: GPU :: NVIDIA CUDA',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: C++',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['grootv', 'grootv.*']),  # grootv/ops is a link to ops
    package_dir={'': '.'},  # an editable install is then a path that editors and type checkers follow
    package_data={'grootv': ['py.typed']},
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in extras},
    ext_modules=[] if os.environ.get('GROOTV_PREBUILT') == '1' else libraries(),
    cmdclass={
        'build_ext': BuildLibraries.with_options(no_python_abi_suffix=True),
        'bdist_wheel': PlatformWheel,
    },
)
