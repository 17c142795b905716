"""Tests the oldest or the newest versions of the libraries that setup.cfg allows.

Makes a virtual environment, with exactly the lower bounds of setup.cfg or with the newest versions that exist for the
Python that runs this, including those of the extra `experiments`. Runs a part of the tests in it and ends with the exit
code of pytest. Warnings are not errors there, as libraries of other versions warn about each other. It takes minutes:
  python tests/tools/versions.py --folder=/tmp/oldest
  python3.13 tests/tools/versions.py --newest --folder=/tmp/newest
"""

import argparse
import configparser
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ('pytest', 'hypothesis', 'setuptools')  # required by the tests, in any version
# The tests of code close to the libraries: checkpoints, modules of Flax, controllers, trained models, whole searches.
TESTS = (
  'tests/training/checkpoint_test.py', 'tests/tree_cell/flax_test.py', 'tests/tree_cell/options_test.py',
  'tests/search/core_test.py', 'tests/controller_test.py', 'tests/export/files_test.py',
  'tests/systems/conv_test.py',
)  # fmt: skip


def requirements(newest: bool) -> list[str]:
  """Returns the requirements of setup.cfg, by default with each lower bound as the version."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  listed = setup['options']['install_requires'] + setup['options.extras_require']['experiments']
  return [line if newest else line.replace('>=', '==') for line in listed.splitlines() if line.strip()]


def main() -> int:
  """Makes the environment and runs the tests. Returns the exit code of pytest."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='of the environment')
  parser.add_argument('--newest', action='store_true', help='tests the newest versions instead of the lower bounds')
  values = parser.parse_args()
  folder = values.folder.expanduser().absolute()
  python = folder / 'bin' / 'python'
  if not python.exists():
    venv.create(folder, with_pip=True)
  upgrade = ['--upgrade'] if values.newest else []  # an environment of before may have older versions
  install = [python, '-m', 'pip', 'install', '--quiet', *upgrade, *requirements(values.newest), *TOOLS]
  subprocess.run(install, check=True)
  command = [python, '-m', 'pytest', '-q', '-o', 'filterwarnings=default', '-m', 'not long', *TESTS]
  return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == '__main__':
  sys.exit(main())
