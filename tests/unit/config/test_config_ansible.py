"""Ansible inventories: what ``ansible-inventory --list`` prints is one; other forms are recognised.

``ansible-list.json`` is what ansible-core 2.19.14 printed for groups as ``HOSTS_INI``, with group_vars.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.config.inventory import parse_inventory
from imgcache.config.load import load_inventory
from imgcache.errors import ConfigError

if TYPE_CHECKING:
    from imgcache.model import Host, Inventory

LISTED = (Path(__file__).parent / "ansible-list.json").read_bytes()
FILE = Path("/srv/inventory.json")
HOSTS_INI = """
[control]
ctl[1:2]

[compute:children]
oslo
bergen
empty

[oslo]
oslo-[01:03].example.net

[bergen]
bergen-1 ansible_host=192.0.2.21 ansible_port=2222
bergen-2 ansible_host=2001:db8::22 ansible_user=CORP\\\\ops

[empty]

[local]
deploy ansible_connection=local
"""


def listed(variables: dict[str, Any], **groups: Any) -> bytes:
    """Return the list of an inventory with one host ``h`` in the group ``g``."""
    data = {"_meta": {"hostvars": {"h": variables}, "profile": "inventory_legacy"}}
    return json.dumps(
        {**data, "all": {"children": ["ungrouped", "g"]}, "g": {"hosts": ["h"]}, **groups}
    ).encode()


def host_of(variables: dict[str, Any]) -> Host:
    (host,) = parse_inventory(FILE, listed(variables)).aggregates["g"].hosts
    return host


def refusals(content: bytes) -> list[tuple[str, str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        parse_inventory(FILE, content)
    return [(problem.where, problem.what, problem.hint) for problem in caught.value.problems]


def names(inventory: Inventory, aggregate: str) -> list[str]:
    return [host.name for host in inventory.aggregates[aggregate].hosts]


def test_what_ansible_inventory_prints_is_an_inventory() -> None:
    inventory = parse_inventory(FILE, LISTED)
    oslo = [f"oslo-0{number}.example.net" for number in (1, 2, 3)]
    # A group stands after its children: a host is shown as the member of the nearest.
    assert list(inventory.aggregates) == ["control", "oslo", "bergen", "compute", "local"]
    assert names(inventory, "oslo") == oslo
    assert names(inventory, "compute") == [*oslo, "bergen-1", "bergen-2"]
    host = inventory.aggregates["oslo"].hosts[0]
    assert (host.cell, host.site, host.settings.user) == ("cell1", "oslo", "ops@corp.example.net")
    assert (host.settings.become, host.settings.become_user) == ("sudo", "nova")
    assert host.settings.proxy_jump == "jump@bastion.example.net:2200"
    assert host.settings.ssh_key == Path("~/.ssh/oslo").expanduser()
    assert host.settings.python == ("python3",)
    one, two = inventory.aggregates["bergen"].hosts
    assert (one.address, one.settings.port, one.site) == ("192.0.2.21", 2222, "bergen")
    assert (two.address, two.settings.user) == ("2001:db8::22", r"CORP\ops")
    # Whom Ansible becomes when nothing says so.
    assert (one.settings.become, one.settings.become_user) == ("sudo", "root")
    assert one.settings.python == ("/usr/libexec/platform-python",)
    assert one.settings.instances_path == "/srv/nova/instances"
    assert one.settings.reserve_bytes == 40 * 1024**3
    assert inventory.aggregates["local"].hosts[0].settings.transport == "local"


@pytest.mark.parametrize(
    ("variables", "setting", "value"),
    [
        ({"ansible_ssh_host": "192.0.2.9"}, "address", "192.0.2.9"),
        ({"ansible_port": "2200"}, "port", 2200),
        ({"ansible_ssh_port": 2200, "ansible_port": 2201}, "port", 2201),
        ({"ansible_become": False}, "become", "none"),
        ({"ansible_become": "no", "imgcache_become": "sudo"}, "become", "sudo"),
        ({"ansible_become_user": "nova"}, "become", "none"),
        ({"ansible_become": 1, "ansible_become_method": "ansible.builtin.sudo"}, "become", "sudo"),
        ({"ansible_python_interpreter": "auto"}, "python", ("python3",)),
        ({"ansible_ssh_common_args": "-J b1,b2 -C"}, "proxy_jump", "b1,b2"),
        ({"ansible_ssh_extra_args": "-o 'ProxyJump b1'"}, "proxy_jump", "b1"),
        ({"ansible_ssh_common_args": "-o StrictHostKeyChecking=no"}, "proxy_jump", None),
        ({"ansible_connection": "ansible.builtin.ssh"}, "transport", "ssh"),
        ({"imgcache_nova_conf": ["/a", "/b"]}, "nova_conf", ("/a", "/b")),
        ({"imgcache_keep_original": True}, "keep_original", True),
        ({"ansible_become_password": {"__ansible_vault": "x"}, "deep": {"a": [{}]}}, "port", None),
    ],
)
def test_variables(variables: dict[str, Any], setting: str, value: object) -> None:
    assert getattr(host_of(variables).settings, setting) == value


@pytest.mark.parametrize(
    ("variables", "variable", "what"),
    [
        ({"ansible_port": "{{ p }}"}, "ansible_port", "is a template"),
        ({"ansible_port": "abc"}, "ansible_port", "must be a whole number, not 'abc'"),
        ({"ansible_host": "-evil"}, "ansible_host", "starts with '-'"),
        ({"ansible_user": {"__ansible_vault": "x"}}, "ansible_user", "must be text, not a mapping"),
        ({"ansible_connection": "network_cli"}, "ansible_connection", "not by network_cli"),
        (
            {"ansible_become": True, "ansible_become_method": "su"},
            "ansible_become_method",
            "su is not",
        ),
        ({"imgcache_sight": "oslo"}, "imgcache_sight", "unknown setting"),
        ({"imgcache_images_type": "zfs"}, "imgcache_images_type", "is none of"),
        (
            {"ansible_ssh_common_args": '-o ProxyCommand="ssh -W %h:%p b"'},
            "ansible_ssh_common_args",
            "ProxyCommand",
        ),
    ],
)
def test_what_cannot_be_taken_over_has_its_place(
    variables: dict[str, Any], variable: str, what: str
) -> None:
    ((where, said, _),) = refusals(json.dumps(json.loads(listed(variables)), indent=4).encode())
    # The list is printed over several lines: _meta, hostvars, h, and this variable.
    place, _, path = where.partition(": ")
    assert path == f"_meta.hostvars.h.{variable}"
    assert place.removeprefix(f"{FILE}:").split(":")[0] in {"4", "5", "6"}
    assert what in said


def test_a_group_of_many_groups_counts_each_host_once() -> None:
    groups = {
        "a": {"children": ["b", "a"]},
        "b": {"children": ["a", "nosuch"], "hosts": ["h", "x"]},
    }
    inventory = parse_inventory(FILE, listed({}, **groups))
    assert names(inventory, "a") == ["h", "x"]


@pytest.mark.parametrize(
    ("groups", "where", "what"),
    [
        ({"g": {"hosts": ["h"], "vars": {"x": 1}}}, "g.vars", "was made with --export"),
        ({"g": {"hosts": "h"}}, "g.hosts", "must be a list of names"),
        ({"g": ["h"]}, "g", "must be a group"),
        ({"g": {"hosts": ["@odd"]}}, "g.hosts", "'@odd' is a group of hosts"),
        ({"g": {"hosts": ["a,b"]}}, "g.hosts", "'a,b' is not a host name"),
    ],
)
def test_odd_groups(groups: dict[str, Any], where: str, what: str) -> None:
    found = refusals(listed({}, **groups))
    assert found[0][0].endswith(f": {where}")
    assert what in found[0][1]


def test_a_large_list_is_read_soon() -> None:
    variables = {f"variable_{number}": "some text of some length" for number in range(100)}
    hosts = {f"n{number}": {**variables, "ansible_port": 22} for number in range(5000)}
    data = {"_meta": {"hostvars": hosts}, "compute": {"hosts": list(hosts)}}
    content = json.dumps(data, indent=4).encode()
    assert len(content) > 20 * 1024**2
    started = time.monotonic()
    assert len(names(parse_inventory(FILE, content), "compute")) == 5000
    assert time.monotonic() - started < 30


def test_it_is_read_from_a_file_larger_than_other_inventories(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(listed({"motd": "x" * (11 * 1024**2)}))
    assert names(load_inventory(path, {}), "g") == ["h"]


@pytest.mark.parametrize(
    ("content", "line", "form"),
    [
        (HOSTS_INI, 2, "INI"),
        ("h1 ansible_host=192.0.2.1\nh2\n", 1, "INI"),
        ("[compute]\nh1\n", 1, "INI"),
        ("all:\n  hosts:\n    h1:\n    h2: {ansible_port: 22}\n", 1, "YAML"),
        ("# x\nall:\n  children:\n    oslo:\n      hosts: {h1: }\n", 2, "YAML"),
        ("compute:\n  hosts:\n    h1:\n", 1, "YAML"),
        (
            "plugin: openstack.cloud.openstack\nexpand_hostvars: true\n",
            1,
            "the configuration of a plugin",
        ),
        ('{"all": {"hosts": ["h1"]}}', 1, "YAML"),
    ],
)
def test_other_forms_are_recognised(content: str, line: int, form: str) -> None:
    path = Path("/etc/ansible/hosts")
    with pytest.raises(ConfigError) as caught:
        parse_inventory(path, content.encode())
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:{line}:1"
    assert problem.what == f"this is an Ansible inventory ({form})"
    assert (
        problem.hint
        == f"give what Ansible makes of it: ansible-inventory -i {path} --list > inventory.json"
    )


def test_a_folder_is_told_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_inventory(tmp_path, {})
    (problem,) = caught.value.problems
    assert problem.what == "is a folder"
    assert "ansible-inventory" in str(problem.hint)
