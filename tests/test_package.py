"""What an installed package gives to somebody without a clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import recursivemas

ROOT = Path(recursivemas.__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a shell in which a wheel of this repository is installed, far from the clone."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return os.environ | {"PYTHONPATH": str(site)}, site


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "recursivemas", "--version"], recursivemas.__version__),
        (["-m", "recursivemas", "solve", "3+5*2-4"], "2"),
        (["-m", "recursivemas", "demo"], "latent positions"),
        (["-c", "import recursivemas; print(recursivemas.__version__, recursivemas.__file__)"], "site"),
        (["-c", "from recursivemas import load_mas_system as load; print(load().solve('3+5*2-4')[0].text)"], "2"),
    ],
)
def test_a_wheel_answers_in_an_empty_folder(installed, tmp_path, arguments, said):
    environment, site = installed
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    assert (site / "recursivemas" / "systems" / "mixture" / "config.json").is_file()
