"""Nothing above the drivers knows one by name; the registry alone imports them, when they are used."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NoReturn

import pytest

from imgcache.drivers.base import METHODS, Driver
from imgcache.drivers.capabilities import COMMANDS, require, supports, why_not
from imgcache.drivers.registry import DRIVERS, Registry
from imgcache.errors import ConfigError, ExitCode
from imgcache.model import Host, HostSettings
from imgcache.operations.drivers import list_drivers
from imgcache.operations.strangers import fenced

SOURCE = Path(__file__).resolve().parents[2] / "src" / "imgcache"
BUILT_IN = ("libvirt", "glance-cache", "vmwareapi", "hyperv")
#: What all drivers share, and who uses them may import.
SHARED = {
    "agent", "base", "capabilities", "entry_rows", "feed", "node_api", "order_fields", "push", "registry",
    "results", "transfer", "transfer_report",
}  # fmt: skip
#: The first word of the modules that are one driver's own.
OWN = ("libvirt", "glance_cache", "vmwareapi", "hyperv")


def above() -> list[Path]:
    """Return what uses drivers."""
    folders = ("commands", "operations", "ui", "transport", "images", "config")
    files = [path for folder in folders for path in (SOURCE / folder).rglob("*.py")]
    return [*files, *SOURCE.glob("*.py")]


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a module imports, inside functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def strings(path: Path) -> set[str]:
    """Return the texts in a module, without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # docstrings, and those behind fields
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documents
    }


def test_every_module_of_the_folder_is_shared_or_one_drivers_own() -> None:
    for path in (SOURCE / "drivers").glob("*.py"):
        name = path.stem
        assert name in {*SHARED, "__init__"} or name.startswith(OWN), name


def test_nothing_above_asks_for_a_driver_by_name() -> None:
    # The default of the inventory's key is a value of the model, not a question.
    allowed = {"model.py": {"libvirt"}}
    found = {
        str(path.relative_to(SOURCE)): named
        for path in above()
        if (named := strings(path) & set(BUILT_IN) - allowed.get(path.name, set()))
    }
    assert found == {}


def test_nothing_above_imports_a_driver() -> None:
    found = {}
    for path in above():
        names = {
            name.split(".")[2]
            for name in imports(path)
            if name.startswith("imgcache.drivers.") and not name.split(".")[2][0].isupper()
        }
        if strange := names - SHARED:
            found[path.name] = strange
    assert found == {}


@pytest.mark.parametrize("own", OWN)
def test_what_is_one_drivers_own_is_imported_by_it_and_the_registry_only(own: str) -> None:
    for path in (SOURCE / "drivers").glob("*.py"):
        if path.stem.startswith(own) or path.name == "registry.py":
            continue
        assert not [name for name in imports(path) if name.startswith(f"imgcache.drivers.{own}")]


def test_drivers_are_imported_when_they_are_used() -> None:
    code = (
        "import sys; from imgcache.drivers.registry import DRIVERS;"
        "list(DRIVERS); DRIVERS.check({'libvirt': 'x'});"
        "print([name for name in sys.modules if name.startswith('imgcache.drivers.')]);"
        "DRIVERS['libvirt'];"
        "print([name for name in sys.modules if name.startswith('imgcache.drivers.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert not [name for name in before if name.split(".")[2].startswith(OWN)]
    used = {name.split(".")[2] for name in after} - SHARED
    assert used
    assert all(name.startswith("libvirt") for name in used)


# ----------------------------------------------------------------------------------------------- capabilities


class Half(Driver):
    """A driver that can look and remove."""

    name = "half"

    async def inspect(self, context: object, **more: object) -> object:  # type: ignore[override]
        raise NotImplementedError

    def remove(self, context: object, *more: object) -> NoReturn:
        raise NotImplementedError


def test_what_a_driver_can_do_is_what_it_overrides() -> None:
    assert {method for method in METHODS if supports(Half(), method)} == {"inspect", "remove"}
    can = {command for command in COMMANDS if why_not(Half(), command) is None}
    assert can == {"list", "status", "prune", "delete"}
    assert why_not(Half(), "verify --repair") == "the driver half cannot verify cached images"
    require(Half(), "prune")


def test_every_method_that_a_command_needs_is_one_of_the_contract() -> None:
    assert {method for methods in COMMANDS.values() for method in methods} <= set(METHODS)
    for method in METHODS:
        assert callable(getattr(Driver, method))


# --------------------------------------------------------------------------------------------- other packages


def registry(*points: tuple[str, str]) -> Registry:
    """Return the registry where packages register these: (name, what it stands for) each."""
    return Registry(lambda: [EntryPoint(name, value, "imgcache.drivers") for name, value in points])


def problems(found: Registry) -> dict[str, str | None]:
    """Return why those of other packages cannot be used."""
    return {one.name: one.problem for one in found.offers() if one.package is not None}


def test_a_registered_driver_is_found_by_its_name() -> None:
    found = registry(("toy", "toy_driver:ToyDriver"))
    assert list(found) == [*BUILT_IN, "toy"]
    found.check({"toy": "inventory.yaml"})
    assert found["toy"].name == "toy"
    assert found["toy"] is found["toy"]
    assert problems(found) == {"toy": None}
    with pytest.raises(KeyError):
        found["other"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("libvirt", "toy_driver:ToyDriver", "built-in"),
        ("Toy", "toy_driver:ToyDriver", "lower-case"),
        ("t;oy", "toy_driver:ToyDriver", "lower-case"),
        ("toy2", "toy_driver:ToyDriver", "no imgcache driver of this name"),
        ("toy", "toy_driver:install_toy", "has no attribute"),
        ("toy", "json:JSONDecoder", "no imgcache driver of this name"),
        ("toy", "no_such_module_at_all:X", "No module named"),
        ("toy", "imgcache.drivers.base:Driver", "no imgcache driver of this name"),
    ],
)
def test_what_cannot_be_used_is_told_and_the_others_stay(name: str, value: str, said: str) -> None:
    found = registry((name, value), ("fine", "unit.test_drivers_seam:Fine"))
    told = problems(found)
    assert said in str(told[name])
    assert told["fine"] is None
    # What is built in stays what it is.
    assert found["libvirt"] is not None
    assert type(found["libvirt"]).__module__ == "imgcache.drivers.libvirt"
    listed = list_drivers(found)
    assert [one.driver for one in listed.problems] == [name]
    assert {one.driver for one in listed.capabilities} == {*BUILT_IN, "fine"}
    if name not in BUILT_IN:
        with pytest.raises(ConfigError):
            found.check({name: "inventory.yaml"})
        with pytest.raises(KeyError):
            found[name]


class Fine(Driver):
    """A driver that is one."""

    name = "fine"


class Lost(Driver):
    """A driver whose code for hosts is not there."""

    name = "lost"
    helper_package = "no_such_package_at_all"


def test_of_two_packages_with_one_name_none_is_used() -> None:
    found = registry(("fine", "unit.test_drivers_seam:Fine"), ("fine", "other:Fine"))
    assert "several packages" in str(problems(found)["fine"])


def test_a_driver_without_its_code_for_hosts_is_told() -> None:
    (problem,) = list_drivers(registry(("lost", "unit.test_drivers_seam:Lost"))).problems
    assert "no_such_package_at_all" in problem.problem


def test_all_unknown_drivers_are_told_at_once_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        DRIVERS.check({"libvrt": "here", "libvirt": "there", "zzz": "elsewhere"})
    assert caught.value.exit_code is ExitCode.USAGE
    first, second = caught.value.problems
    assert (first.where, first.what) == ("here", "unknown driver 'libvrt'")
    assert str(first.hint).startswith("did you mean libvirt?")
    assert all(name in str(second.hint) for name in BUILT_IN)


def test_a_bug_of_ours_stays_a_bug() -> None:
    class OnHost:
        host = Host("h1", "edge", None, None, HostSettings(driver="libvirt"))

    async def work(context: object, images: object) -> None:
        raise ValueError(context, images)

    with pytest.raises(ValueError, match="OnHost"):
        asyncio.run(fenced(work)(OnHost(), ()))  # type: ignore[arg-type]
