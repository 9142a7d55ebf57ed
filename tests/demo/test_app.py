import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
sys.modules['gradio'] = None
sys.path.insert(0, 'demo')
sys.argv = ['app.py', *sys.argv[1:]]
runpy.run_path('demo/app.py', run_name='__main__')
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', WITHOUT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_without_its_packages_the_page_names_the_extra():
    assert run('--help').returncode == 0
    done = run()
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith('app.py: the page needs the packages of the extra app')
    )
