"""The workshop is taken from our checkout only, and wins over packages of the same names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wafervlm
from wafervlm import workshop
from wafervlm.errors import WorkshopError

ROOT = Path(wafervlm.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in small: the station as it is, and workshop folders that say where they are from."""
    root = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "wafervlm", root / "wafervlm", ignore=shutil.ignore_patterns("__pycache__", "bundle")
    )
    (root / "pyproject.toml").write_text('[project]\nname = "wafervlm"\nversion = "7.8.9"\n')
    for folder in workshop.FOLDERS:
        _package(root / folder, "ours")
    return root


def _package(folder: Path, whose: str) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "commands.py").write_text(
        "import click\n"
        "@click.command('train')\n"
        "def command() -> None:\n"
        f"    click.echo('{whose}')\n"
        "@click.command('merge')\n"
        "def needs() -> None:\n"
        "    import distribution_that_is_not_there\n"
    )


def run(
    root: Path, *arguments: str, path: tuple[Path, ...] = (), before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command line of the station in ``root``, with ``path`` before everything on sys.path."""
    code = (
        f"import sys; sys.path[:0] = {[str(p) for p in (*path, root)]!r}\n{before}\n"
        "from wafervlm.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_workshop_command_runs_from_the_checkout(checkout: Path) -> None:
    done = run(checkout, "train")
    assert (done.returncode, done.stdout) == (0, "ours\n"), done.stderr


def test_ours_wins_over_a_foreign_package_of_the_same_name(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    _package(site / "train", "foreign")
    done = run(checkout, "train", path=(site,))
    assert (done.returncode, done.stdout) == (0, "ours\n"), done.stderr


def test_a_foreign_package_that_is_already_imported_is_named(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    _package(site / "train", "foreign")
    done = run(checkout, "train", path=(site,), before="import train")
    assert done.returncode == 4
    assert str(site / "train") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_beside_a_bare_package_a_foreign_train_is_not_run(checkout: Path, tmp_path: Path) -> None:
    """Installed into site-packages, the folder beside the package is somebody else's."""
    site = tmp_path / "site-packages"
    shutil.copytree(checkout / "wafervlm", site / "wafervlm")
    for folder in workshop.FOLDERS:
        _package(site / folder, "foreign")
    done = run(site, "train")
    assert (done.returncode, done.stdout) == (4, "")
    assert "pip install -e '.[workshop]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "pyproject.toml").unlink(),
        lambda root: (root / "pyproject.toml").write_text('[project]\nname = "wafervlm-addon"\n'),
        lambda root: (root / "pyproject.toml").write_bytes(b"\xff\xfe\x00"),
        lambda root: shutil.rmtree(root / "export"),
    ],
    ids=["no project file", "another project", "not text", "a folder missing"],
)
def test_what_is_no_checkout(checkout: Path, spoil: object) -> None:
    assert workshop.is_checkout(checkout)
    spoil(checkout)  # type: ignore[operator]
    assert not workshop.is_checkout(checkout)
    with pytest.raises(WorkshopError, match="the wheel does not ship"):
        workshop.load("train.commands", checkout)


def test_a_missing_distribution_is_named_with_what_to_install(checkout: Path) -> None:
    done = run(checkout, "merge")
    assert done.returncode == 4
    assert "distribution_that_is_not_there is not installed" in done.stderr
    assert "pip install -e '.[workshop]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_module_of_ours_is_a_defect_and_not_hidden(checkout: Path) -> None:
    (checkout / "export" / "commands.py").unlink()
    done = run(checkout, "export")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "export.commands" in done.stderr


def test_a_checkout_that_lacks_a_command_says_so(checkout: Path) -> None:
    done = run(checkout, "benchmark")
    assert done.returncode == 4
    assert "'benchmark'" in done.stderr


def test_the_version_is_the_checkouts(checkout: Path) -> None:
    assert run(checkout, "--version").stdout == "wafervlm 7.8.9\n"


def test_help_says_that_a_bare_wheel_has_no_workshop(checkout: Path) -> None:
    assert "need a checkout" not in run(checkout, "--help").stdout
    shutil.rmtree(checkout / "train")
    assert "need a checkout" in run(checkout, "--help").stdout
