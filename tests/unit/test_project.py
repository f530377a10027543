"""Rules that the project as a whole keeps: floors, paths, examples, pages, package."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from imgcache.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def test_floors_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_imports_are_declared_as_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in project["dependencies"]}
    other_names = {"yaml": "pyyaml", "openstack": "openstacksdk"}
    missing = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            for name in names:
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top in ("imgcache", "imgcache_helper"):
                    continue
                if other_names.get(top, top).lower() not in declared:
                    missing.add(f"{path.relative_to(ROOT)}: {name}")
    assert missing == set()


def test_nothing_names_a_machine_or_a_registry() -> None:
    # Put together here, so that this file does not hold what it looks for.
    patterns = [
        *(f"/{folder}/" for folder in ("work", "root")),
        "/tmp/" + "setup",
        *(".".join(parts) for parts in (("pypi", "org"), ("deb", "debian", "org"))),
        *(".".join(parts) for parts in (("python" + "hosted", "org"), ("registry", "npm" + "js"))),
    ]
    # After a letter it is another word: `framework/`, `<cache>/root/`.
    wanted = re.compile(r"(?<![\w>./-])(" + "|".join(re.escape(text) for text in patterns) + ")")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if wanted.search(line)
    ]
    assert found == []


def test_examples_load() -> None:
    from imgcache.config.load import load_inventory

    examples = sorted((ROOT / "examples").glob("*inventory*.yaml"))
    assert examples
    for path in examples:
        assert load_inventory(path).aggregates, path


def test_inventory_of_the_readme_loads(tmp_path: Path) -> None:
    from imgcache.config.load import load_inventory

    section = (ROOT / "README.md").read_text().partition("## Inventory in ten lines")[2]
    text = section.partition("```yaml\n")[2].partition("```")[0]
    assert text.count("\n") == 10
    (tmp_path / "inventory.yaml").write_text(text)
    assert len(load_inventory(tmp_path / "inventory.yaml").aggregates["edge-1"].hosts) == 21


def test_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE)
    assert [int(code) for row in rows for code in row.split(",")] == [
        int(code) for code in ExitCode
    ]


def test_sudoers_lines_of_the_readme_are_sound(tmp_path: Path) -> None:
    visudo = shutil.which("visudo", path="/usr/sbin:/usr/bin")
    if not visudo:
        pytest.skip("sudo is not installed")
    lines = re.findall(r"```sudoers\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert lines
    for number, text in enumerate(lines):
        path = tmp_path / f"sudoers{number}"
        path.write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")
        subprocess.run([visudo, "-c", "-q", "-f", path], check=True)


def test_changelog_keeps_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    for line in releases[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line), line
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for line in lines:
        assert not line.startswith("### ") or line[4:] in kinds, line


@pytest.mark.xdist_group("groups")
def test_groups_of_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """The servers behind ``openstack`` would otherwise be started once per worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("runs in one process")
    assert request.node.nodeid.endswith("@groups")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from the sources as they are now."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True,
    )  # fmt: skip
    (path,) = folder.glob("imgcache-*.whl")
    return path


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_the_helper_as_text_and_says_it_is_typed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    helper = {
        f"imgcache/helper/{path.name}" for path in (ROOT / "src/imgcache/helper").glob("*.py")
    }
    assert "imgcache/helper/core.py" in helper
    assert helper <= names
    assert "imgcache/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "demo/"))]


@pytest.mark.xdist_group("wheel")
def test_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / "bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", str(python),
         "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )  # fmt: skip
    # The dependencies come from here, not from a network; our own package must not.
    paths = sysconfig.get_paths(vars={"base": str(fresh), "platbase": str(fresh)})
    lender = Path(sysconfig.get_path("purelib"))
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    for entry in lender.iterdir():
        if "imgcache" not in entry.name and entry.suffix != ".pth":
            (borrowed / entry.name).symlink_to(entry)
    (Path(paths["purelib"]) / "borrowed.pth").write_text(f"{borrowed}\n")

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    program = fresh / "bin/imgcache"
    assert run(program, "--version").startswith("imgcache ")
    assert "precache" in run(program, "--help")
    assert run(python, "-I", "-m", "imgcache", "--version") == run(program, "--version")
    where = run(python, "-I", "-c", "import imgcache; print(imgcache.__file__)").strip()
    assert Path(where).is_relative_to(fresh)


@pytest.mark.long
@pytest.mark.xdist_group("wheel")
def test_wheel_and_its_dependencies_install_from_nothing(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", fresh], check=True)
    subprocess.run(
        [fresh / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check",
         "-c", ROOT / "tools/constraints.txt", wheel],
        check=True,
    )  # fmt: skip
    subprocess.run([fresh / "bin/imgcache", "precache", "--help"], check=True)
    subprocess.run([fresh / "bin/python", "-m", "pip", "check"], check=True)
