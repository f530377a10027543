"""nova.conf is read as oslo.config reads it."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgcache.helper import conf
from imgcache.helper.core import Failure

ROOT = Path(__file__).parents[2]
OSLO_PYTHON = ROOT / ".venv-openstack/bin/python"
ORACLE = Path(__file__).parent / "oslo_config_oracle.py"
WANTED = ("instances_path", "cache_subdirectory", "force_raw_images", "images_type")


def read(*paths: Path, **given: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the helper makes of these files: values and where each is from."""
    settings_given: dict[str, Any] = dict.fromkeys(WANTED)
    settings_given["nova_conf"] = [str(path) for path in paths]
    values, origins = conf.effective({**settings_given, **given})
    return values, origins


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nova.conf"


def test_defaults_where_a_file_says_nothing(file: Path) -> None:
    file.write_text("")
    values, origins = read(file)
    assert values == {
        "instances_path": "/var/lib/nova/instances", "cache_subdirectory": "_base",
        "force_raw_images": True, "images_type": "qcow2",
    }  # fmt: skip
    assert set(origins.values()) == {"default"}


class TestNoFileAtAll:
    """Nova's defaults are no answer: the host may use rbd, and a cached file would harm it."""

    def refused(self, **given: Any) -> str:
        with pytest.raises(Failure) as caught:
            conf.effective({**dict.fromkeys((*WANTED, "nova_conf")), **given})
        assert caught.value.code == "config"
        return str(caught.value)

    @pytest.fixture(autouse=True)
    def empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if conf.find_files():
            pytest.skip("this machine has a nova.conf")

    @pytest.mark.parametrize("given", [{}, {"instances_path": "/i"}, {"images_type": "qcow2"}])
    def test_is_refused(self, given: dict[str, str]) -> None:
        said = self.refused(**given)
        assert "there is no nova.conf in " in said
        assert "/etc/nova" in said
        assert "give nova_conf" in said

    def test_what_the_inventory_gives_is_enough(self) -> None:
        given = {"instances_path": "/i", "images_type": "qcow2"}
        values, origins = conf.effective({**dict.fromkeys((*WANTED, "nova_conf")), **given})
        assert values["cache_subdirectory"] == "_base"
        assert origins["force_raw_images"] == "default"

    def test_a_folder_without_files(self, tmp_path: Path) -> None:
        assert str(tmp_path) in self.refused(nova_conf=[str(tmp_path)])

    @pytest.mark.parametrize(
        "place",
        [
            "var/lib/config-data/puppet-generated/nova_libvirt/etc/nova/nova.conf",
            "var/lib/config-data/nova_compute/etc/nova/nova.conf",
            "var/lib/openstack/config/nova/01-nova.conf",
            "etc/kolla/nova-compute/nova.conf",
        ],
    )
    def test_where_a_container_has_its_own_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("[libvirt]\nimages_type = rbd\n")
        places = [f"{tmp_path}{pattern}" for pattern in conf._CONTAINER_FILES]
        monkeypatch.setattr(conf, "_CONTAINER_FILES", places)
        said = self.refused()
        assert "container" in said
        named = said.partition("nova_conf: ")[2].split(" ", 1)[0]
        assert str(path).startswith(named)
        assert read(Path(named))[0]["images_type"] == "rbd"

    @pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
    def test_a_folder_that_may_not_be_searched_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hidden = tmp_path / "nova"
        hidden.mkdir(mode=0o700)
        (hidden / "nova.conf").write_text("[libvirt]\nimages_type = rbd\n")
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        monkeypatch.setattr(conf, "_folders", lambda: (str(hidden),))
        os.seteuid(65534)
        try:
            said = self.refused()
        finally:
            os.seteuid(0)
        assert f"may not look into {hidden}" in said


@pytest.mark.parametrize("value", ["RBD", "", "rbd  # ceph", "ceph", "Default", '""', "rbd\n  x"])
def test_an_images_type_that_nova_does_not_know(file: Path, value: str) -> None:
    file.write_text(f"[libvirt]\nimages_type = {value}\n")
    with pytest.raises(Failure, match="images_type must be one of") as caught:
        read(file)
    assert caught.value.code == "config"
    assert str(file) in caught.value.message


@pytest.mark.parametrize("value", ["rbd ", '"rbd"', "'rbd'"])
def test_an_images_type_in_quotes(file: Path, value: str) -> None:
    file.write_text(f"[libvirt]\nimages_type = {value}\n")
    assert read(file)[0]["images_type"] == "rbd"


def test_the_inventory_wins_and_then_no_file_is_opened(tmp_path: Path) -> None:
    given_all = {
        "instances_path": "/i", "cache_subdirectory": "c", "force_raw_images": False, "images_type": "raw"
    }  # fmt: skip
    values, origins = read(tmp_path / "does-not-exist.conf", **given_all)
    assert values == given_all
    assert set(origins.values()) == {"inventory"}


def test_where_each_value_is_from(file: Path) -> None:
    file.write_text("[DEFAULT]\nforce_raw_images = off\n")
    values, origins = read(file, instances_path="/i")
    assert values["force_raw_images"] is False
    assert origins == {
        "instances_path": "inventory", "force_raw_images": str(file), "cache_subdirectory": "default",
        "images_type": "default",
    }  # fmt: skip


def test_finds_files_where_oslo_config_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.path.expanduser("~nova").startswith("~"):
        pytest.skip("this machine has a user nova")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".nova").mkdir()
    (tmp_path / "nova.conf").write_text("")
    (tmp_path / ".nova/nova.conf").write_text("")
    (tmp_path / "nova-compute.conf").write_text("")
    (tmp_path / ".nova/nova.conf.d").mkdir()
    (tmp_path / "nova-compute.conf.d").mkdir()
    expected = [".nova/nova.conf", "nova-compute.conf", ".nova/nova.conf.d", "nova-compute.conf.d"]
    assert conf.find_files() == [str(tmp_path / name) for name in expected]


def test_folders_are_read_sorted_and_only_conf_files(tmp_path: Path) -> None:
    folder = tmp_path / "nova.conf.d"
    folder.mkdir()
    (folder / "20.conf").write_text("[DEFAULT]\ninstances_path=/20\n")
    (folder / "10.conf").write_text("[DEFAULT]\ninstances_path=/10\n")
    (folder / "99.conf.bak").write_text("[DEFAULT]\ninstances_path=/99\n")
    (folder / ".30.conf").write_text("[DEFAULT]\ninstances_path=/30\n")
    assert read(folder)[0]["instances_path"] == "/20"


def test_an_unreadable_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="inventory") as caught:
        read(tmp_path / "none.conf")
    assert caught.value.code == "config"


@pytest.mark.parametrize(
    "text",
    [
        "[DEFAULT]\nforce_raw_images = maybe\n",
        "[libvirt\nimages_type = raw\n",
        "[]\n",
        "instances_path = /x\n",
        "[DEFAULT]\nnonsense\n",
        "[DEFAULT]\n= value\n",
        " continuation\n",
        "[DEFAULT]\na = 1\n# comment\n  continuation\n",
        "[DEFAULT]\ninstances_path = $instances_path\n",
        "[DEFAULT]\ninstances_path = $nobody_knows/x\n",
    ],
)
def test_refuses_what_nova_could_not_use(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Failure) as caught:
        read(file)
    assert caught.value.code == "config"
    assert str(file) in caught.value.message or "inventory" in caught.value.message


CASES = [
    "[DEFAULT]\nstate_path = /s\n",
    "[DEFAULT]\ninstances_path = ${state_path}/x$$y\n",
    "[DEFAULT]\ninstances_path = /a\\$b\n",
    "[DEFAULT]\ninstances_path = /a$\n",
    "[DEFAULT]\ninstances_path = $1/$$$$\n",
    "[DEFAULT]\ninstances_path=/x # not a comment\n",
    '[DEFAULT]\ninstances_path : "/q"\n',
    "[DEFAULT]\ninstances_path = '/q\"\n",
    "[DEFAULT]\nfoo = 1\ninstances_path = /1\ninstances_path = /2\n",
    "[DEFAULT]\ninstances_path = /1\n[libvirt]\nimages_type=lvm\n[DEFAULT]\ninstances_path = /2\n",
    "[DEFAULT]\nmy_ip = 10.0.0.1\n[image_cache]\nsubdirectory_name = _base_$my_ip\n",
    "[DEFAULT]\nmy_ip = 10.0.0.1\n[image_cache]\nsubdirectory_name = _base_$DEFAULT.my_ip\n",
    "[image_cache]\nsubdirectory_name = x_$libvirt.images_type\n[libvirt]\nimages_type=flat\n",
    "[image_cache]\nsubdirectory_name = x_${libvirt.images_type}.d\n[libvirt]\nimages_type=flat\n",
    "[DEFAULT]\nimage_cache_subdirectory_name = old\n",
    "[DEFAULT]\nimage_cache_subdirectory_name = old\n[image_cache]\nsubdirectory_name = new\n",
    "[Image_Cache]\nsubdirectory_name = cased\n[LIBVIRT]\nimages_type = RAW\n",
    "[default]\ninstances_path = /lower\n",
    "[DEFAULT]\nuse_cow_images = 0\n",
    "[DEFAULT]\nuse_cow_images = No\nforce_raw_images = FALSE\n",
    "[libvirt]\nimages_type = default\n[DEFAULT]\nuse_cow_images=oFF\n",
    "[DEFAULT]\r\ninstances_path = /dos\r\n",
    "\n\n# only\n; comments\n",
    "[DEFAULT]\ninstances_path = /with space/é\n",
    "[DEFAULT]\ninstances_path =\n",
    "[DEFAULT]\nlist = a,\n  b,\n  c\ninstances_path = /after\n",
    "[DEFAULT]\nforce_raw_images = 2\n",
    "[DEFAULT\ninstances_path = /x\n",
    "[DEFAULT]\ninstances_path = $state_path\nstate_path = $nothing\n",
    "[DEFAULT]\ninstances_path = a=b:c\n",
    "[DEFAULT]\nforce_raw_images = ' true '\n",
    "[libvirt]\nimages_type = RBD\n",
    "[libvirt]\nimages_type =\n",
    "[libvirt]\nimages_type = rbd  # ceph\n",
    "[libvirt]\nimages_type = ceph\n",
    "[libvirt]\nimages_type = ''\n",
    "[libvirt]\nimages_type = 'rbd'\n",
    "[libvirt]\nimages_type = rbd\n  x\n",
]


@pytest.fixture(scope="module")
def oslo() -> None:
    probe = [str(OSLO_PYTHON), "-c", "import oslo_config"]
    if (
        not OSLO_PYTHON.exists()
        or subprocess.run(probe, capture_output=True, check=False).returncode
    ):
        pytest.skip("no oslo.config: the OpenStack test environment was not set up")


def oracle(*paths: Path) -> dict[str, Any]:
    done = subprocess.run([OSLO_PYTHON, ORACLE, *paths], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.openstack
@pytest.mark.usefixtures("oslo")
def test_same_values_as_oslo_config(tmp_path: Path) -> None:
    paths = []
    for number, text in enumerate(CASES):
        paths.append(tmp_path / f"{number}.conf")
        paths[-1].write_bytes(text.encode())
    for path in paths:
        theirs = oracle(path)
        try:
            ours = read(path)[0]
        except Failure:
            ours = {}
        if "error" in theirs:
            assert ours == {}, (path.read_text(), theirs)
        else:
            assert ours == theirs, path.read_text()


@pytest.mark.openstack
@pytest.mark.usefixtures("oslo")
def test_later_files_win_as_in_oslo_config(tmp_path: Path) -> None:
    first, second = tmp_path / "1.conf", tmp_path / "2.conf"
    first.write_text("[image_cache]\nsubdirectory_name = new\n[DEFAULT]\nstate_path = /1\n")
    second.write_text(
        "[DEFAULT]\nimage_cache_subdirectory_name = old\ninstances_path = $state_path/i\n"
    )
    assert read(first, second)[0] == oracle(first, second)
    assert read(second, first)[0] == oracle(second, first)


@settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                ["[DEFAULT]", "[libvirt]", "a = 1", " b", "instances_path = $state_path${", "$", "}",
                 "x=${a}",
                 "state_path = $instances_path", "use_cow_images", "# c", "", "images_type: $$"]
            )
        ).map("\n".join),
    )
)  # fmt: skip
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fuzz.conf"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        values, _ = read(path)
    except Failure as failure:
        assert failure.code == "config"  # noqa: PT017
    else:
        assert set(values) == set(WANTED)
