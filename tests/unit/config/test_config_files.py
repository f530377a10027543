"""Where the inventory is looked for, and which files are not trusted (R19, C11)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgcache.config.files import MAX_FILE_BYTES, find_inventory_file, others_can_write
from imgcache.config.load import load_inventory
from imgcache.errors import ConfigError, ExitCode

CONTENT = "aggregates: {a: {hosts: [h]}}\n"


def write(path: Path, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONTENT)
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_inventory(path)
    assert caught.value.exit_code is ExitCode.USAGE
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    return problem.what


def test_the_order_of_the_places(tmp_path: Path, private_home: Path) -> None:
    named, by_variable = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml")
    xdg = write(tmp_path / "xdg/imgcache/inventory.yaml")
    home = write(private_home / ".config/imgcache/inventory.yaml")
    environ = {"IMGCACHE_INVENTORY": str(by_variable), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert find_inventory_file(named, environ) == named
    assert find_inventory_file(None, environ) == by_variable
    environ["IMGCACHE_INVENTORY"] = ""
    assert find_inventory_file(None, environ) == xdg
    # The XDG specification: a relative path is to be ignored.
    assert find_inventory_file(None, {"XDG_CONFIG_HOME": "xdg"}) == home
    assert find_inventory_file(None, {}) == home


def test_a_home_in_the_name_is_resolved(private_home: Path) -> None:
    assert find_inventory_file(Path("~/x.yaml"), {}) == private_home / "x.yaml"
    environ = {"IMGCACHE_INVENTORY": "~/x.yaml"}
    assert find_inventory_file(None, environ) == private_home / "x.yaml"


@pytest.mark.row("R19")
def test_the_working_directory_is_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inventory.yaml", "imgcache/inventory.yaml", ".config/imgcache/inventory.yaml"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for environ in ({}, {"XDG_CONFIG_HOME": "."}, {"XDG_CONFIG_HOME": ""}):
        with pytest.raises(ConfigError, match="no inventory: looked for") as caught:
            load_inventory(None, environ)
        assert caught.value.hint == "name one with --inventory FILE or IMGCACHE_INVENTORY"
    # Named, it is used.
    assert load_inventory(Path("inventory.yaml"), {}).aggregates


@pytest.mark.row("C11")
@pytest.mark.row("R19")
@pytest.mark.parametrize("mode", [0o602, 0o622, 0o666, 0o646])
def test_refuses_a_file_that_everybody_can_write(tmp_path: Path, mode: int) -> None:
    assert refusal(write(tmp_path / "i.yaml", mode)) == "can be written by other users"


@pytest.mark.row("C11")
def test_refuses_a_file_that_a_shared_group_can_write(tmp_path: Path) -> None:
    path = write(tmp_path / "i.yaml", 0o660)
    if os.geteuid() == 0:
        os.chown(path, 0, 100)  # "users" on Debian: nobody's own group
        assert refusal(path) == "can be written by other users"
    assert load_inventory(write(tmp_path / "own.yaml", 0o640)).aggregates


@pytest.mark.row("C11")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_refuses_a_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "i.yaml")
    os.chown(path, 65534, 0)
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert "belongs to another user (uid 65534)" in refusal(path)
    # The user who became root with sudo is the operator.
    monkeypatch.setenv("SUDO_UID", "65534")
    assert load_inventory(path).aggregates


@pytest.mark.row("C11")
def test_refuses_a_file_where_everybody_can_replace_it(tmp_path: Path) -> None:
    path = write(tmp_path / "open/i.yaml")
    path.parent.chmod(0o777)
    assert "every user can replace it" in refusal(path)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert "every user can replace it" in refusal(link)
    path.parent.chmod(0o1777)
    assert load_inventory(path).aggregates


def test_a_group_write_bit_needs_a_private_group(tmp_path: Path) -> None:
    path = write(tmp_path / "i.yaml", 0o660)
    status = path.stat()
    fields = list(status)
    fields[5] = 4242424  # st_gid: a group that nobody has
    assert others_can_write(os.stat_result(fields))


def test_missing_and_odd_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == "cannot be read: No such file or directory"
    assert refusal(tmp_path) in {"is not a regular file", "is a folder"}
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert refusal(fifo) == "is not a regular file"


@pytest.mark.row("C7")
def test_refuses_more_than_ten_mebibytes(tmp_path: Path) -> None:
    path = write(tmp_path / "i.yaml")
    with path.open("ab") as file:
        file.write(b"#" * (MAX_FILE_BYTES + 1 - path.stat().st_size))
    assert refusal(path) == "is larger than 10 MiB"
    with path.open("r+b") as file:
        file.truncate(MAX_FILE_BYTES)
    assert load_inventory(path).aggregates


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    # A link to itself, since root may look into every folder.
    place = tmp_path / "imgcache"
    place.symlink_to(place)
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(ConfigError) as caught:
        load_inventory(None, environ)
    (problem,) = caught.value.problems
    assert problem.what.startswith("cannot be read: Too many levels of symbolic links")
