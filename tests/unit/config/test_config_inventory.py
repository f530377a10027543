"""From the file to model types: what is taken over, and every fault with its place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imgcache.config.inventory import parse_inventory
from imgcache.errors import ConfigError, ExitCode
from imgcache.model import HostSettings, ImageServiceSettings, Inventory

FILE = Path("/srv/imgcache/inventory.yaml")


def read(text: str) -> Inventory:
    return parse_inventory(FILE, text.encode())


def problems(text: str) -> list[tuple[str, str, str | None]]:
    """Return (place without the file, what, hint) of every problem."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.exit_code is ExitCode.USAGE
    prefix = f"{FILE}:"
    assert all(problem.where.startswith(prefix) for problem in caught.value.problems)
    return [
        (problem.where.removeprefix(prefix), problem.what, problem.hint)
        for problem in caught.value.problems
    ]


def problem(text: str) -> tuple[str, str]:
    """Return (place, what) of the only problem."""
    ((where, what, _),) = problems(text)
    return where, what


def of_host(settings: str) -> str:
    return f"aggregates: {{a: {{hosts: [{{name: h, {settings}}}]}}}}"


def test_the_design_example() -> None:
    inventory = read("""
image_service:
  kind: glance
  cloud: edge
defaults:
  driver: libvirt
  user: nova
  become: none
  python: "podman exec -i nova_compute python3"
aggregates:
  edge-1:
    cell: cell1
    site: oslo
    hosts:
      - edge1-[01-20].example.net
      - {name: edge1-21, address: 192.0.2.21, port: 2222, instances_path: /srv/nova/instances}
""")
    assert inventory.path == FILE
    assert inventory.image_service == ImageServiceSettings(kind="glance", cloud="edge")
    aggregate = inventory.aggregates["edge-1"]
    assert (aggregate.name, aggregate.cell, aggregate.site) == ("edge-1", "cell1", "oslo")
    names = [host.name for host in aggregate.hosts]
    assert names == [*(f"edge1-{number:02}.example.net" for number in range(1, 21)), "edge1-21"]
    python = ("podman", "exec", "-i", "nova_compute", "python3")
    assert aggregate.hosts[0].settings == HostSettings(user="nova", python=python)
    assert aggregate.hosts[-1].settings == HostSettings(
        user="nova",
        python=python,
        address="192.0.2.21",
        port=2222,
        instances_path="/srv/nova/instances",
    )
    assert {(host.aggregate, host.cell, host.site) for host in aggregate.hosts} == {
        ("edge-1", "cell1", "oslo")
    }


def test_host_settings_win_over_aggregate_settings_over_defaults() -> None:
    inventory = read("""
defaults: {user: d, port: 1, become: sudo}
aggregates:
  a: {user: a, port: 2, hosts: [plain, {name: own, user: h}]}
  b: {hosts: [other]}
""")
    plain, own = inventory.aggregates["a"].hosts
    assert (plain.settings.user, plain.settings.port, plain.settings.become) == ("a", 2, "sudo")
    assert (own.settings.user, own.settings.port, own.settings.become) == ("h", 2, "sudo")
    assert inventory.aggregates["b"].hosts[0].settings.user == "d"


def test_every_setting_arrives() -> None:
    (host,) = (
        read("""
aggregates:
  a:
    hosts:
      - name: h
        driver: vmwareapi
        address: 2001:db8::1
        port: 22022
        user: stack
        become: sudo
        become_user: nova
        python: [podman, exec, "-i", "a b", python3]
        transport: local
        ssh_key: keys/id
        known_hosts: /etc/known
        proxy_jump: me@jump.example.net:22,[2001:db8::2]:2222
        connect_timeout_s: 2.5
        nova_conf: [/etc/nova/nova.conf, /etc/nova/b.conf]
        instances_path: /srv/i
        cache_subdirectory: _base_x
        force_raw_images: yes
        images_type: flat
        reserve: 10GiB
""")
        .aggregates["a"]
        .hosts
    )
    assert host.settings == HostSettings(
        driver="vmwareapi",
        address="2001:db8::1",
        port=22022,
        user="stack",
        become="sudo",
        become_user="nova",
        python=("podman", "exec", "-i", "a b", "python3"),
        transport="local",
        ssh_key=Path("/srv/imgcache/keys/id"),
        known_hosts=Path("/etc/known"),
        proxy_jump="me@jump.example.net:22,[2001:db8::2]:2222",
        connect_timeout_s=2.5,
        nova_conf=("/etc/nova/nova.conf", "/etc/nova/b.conf"),
        instances_path="/srv/i",
        cache_subdirectory="_base_x",
        force_raw_images=True,
        images_type="flat",
        reserve_bytes=10 * 1024**3,
    )


def test_text_is_not_mistaken_for_other_types() -> None:
    inventory = read("aggregates: {1e3: {site: no, cell: 0x1, hosts: [007, 1.5]}}")
    aggregate = inventory.aggregates["1e3"]
    assert (aggregate.site, aggregate.cell) == ("no", "0x1")
    assert [host.name for host in aggregate.hosts] == ["007", "1.5"]


def test_paths_are_relative_to_the_inventory_and_know_the_home(private_home: Path) -> None:
    inventory = read("""
image_service: {kind: directory, path: images/}
aggregates: {a: {ssh_key: ~/.ssh/id, hosts: [h]}}
""")
    assert inventory.image_service.path == Path("/srv/imgcache/images")
    assert inventory.aggregates["a"].hosts[0].settings.ssh_key == private_home / ".ssh/id"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("10GiB", 10 * 1024**3), ("500MB", 500 * 10**6), ("0", 0), ("1.5 GiB", 3 * 2**29)],
)
def test_reserve(text: str, size_bytes: int) -> None:
    (host,) = read(of_host(f"reserve: {text}")).aggregates["a"].hosts
    assert host.settings.reserve_bytes == size_bytes


@pytest.mark.row("C8")
def test_all_faults_at_once_each_with_its_place_and_the_nearest_key() -> None:
    found = problems("""image_servic: {}
defaults: {usr: nova, port: abc, become: su}
aggregates:
  edge-1:
    concurency: 5
    hosts: [-evil, {name: a, prot: 3}]
  e2: {}
  e3: {hosts: []}
""")
    assert found[0] == ("1:1: image_servic", "unknown key", "did you mean 'image_service'?")
    assert found[1] == ("2:12: defaults.usr", "unknown key", "did you mean 'user'?")
    assert found[2] == ("2:29: defaults.port", "must be a whole number, not 'abc'", None)
    assert found[3] == ("2:42: defaults.become", "'su' is none of 'none', 'sudo'", None)
    assert found[4][:2] == ("5:5: aggregates.edge-1.concurency", "unknown key")
    assert found[4][2] is not None
    assert "hosts" in found[4][2]
    assert found[5][0] == "6:13: aggregates.edge-1.hosts[0]"
    assert found[6] == (
        "6:30: aggregates.edge-1.hosts[1].prot",
        "unknown key",
        "did you mean 'port'?",
    )
    assert len(found) == 7


@pytest.mark.row("C8")
@pytest.mark.row("S11")
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("port: 0", "must be greater than or equal to 1"),
        ("port: 65536", "must be less than or equal to 65535"),
        ("port: 22.5", "must be a whole number"),
        ("connect_timeout_s: 0", "must be greater than 0"),
        ("connect_timeout_s: nan", "must be"),
        ("connect_timeout_s: 20s", "must be a number, not '20s'"),
        ("user: [a]", "must be text, not a list"),
        ("user: '-oProxyCommand=x'", "is not a user name"),
        ("user: 'a b'", "is not a user name"),
        ("become_user: 'nova; id'", "is not the name of a user"),
        ("become: yes", "is none of"),
        ("python: []", "must name a command"),
        ("python: ''", "must name a command"),
        ('python: "sh -c \'x"', "No closing quotation"),
        ('python: ["a\\nb"]', "control characters"),
        ("force_raw_images: maybe", "must be true or false, not 'maybe'"),
        ("images_type: qcow", "is none of"),
        ("transport: telnet", "is none of"),
        ("driver: Xen", "is not the name of a driver"),
        ("driver: 'xen;id'", "is not the name of a driver"),
        ("instances_path: srv", "must be an absolute path"),
        ("instances_path: /srv/../etc", "must not contain '..'"),
        ("cache_subdirectory: a/b", "must be the name of a folder"),
        ("cache_subdirectory: '..'", "must be the name of a folder"),
        ("nova_conf: nova.conf", "must be an absolute path"),
        ("nova_conf: {a: b}", "must be a list"),
        ("reserve: many", "is not a size"),
        ("reserve: -5GiB", "is not a size"),
        ("proxy_jump: '-oX=y'", "starts with '-'"),
        ("proxy_jump: a b", "must be [user@]host[:port]"),
        ("proxy_jump: a:99999", "must be [user@]host[:port]"),
        ("address: '-x'", "starts with '-'"),
        ("address: 'u@h'", "names a user"),
        ("ssh_key: ''", "must not be empty"),
    ],
)
def test_bad_settings(settings: str, what: str) -> None:
    key = settings.partition(":")[0]
    where, found = problem(of_host(settings))
    assert where.endswith(f": aggregates.a.hosts[0].{key}") or where.endswith(f".{key}[0]")
    assert what in found


@pytest.mark.row("C8")
@pytest.mark.parametrize(
    "text",
    [
        "a",
        "[a]",
        "aggregates: {}",
        "aggregates: []",
        "aggregates: x",
        "defaults: {}",
        "aggregates: {a: }",
    ],
)
def test_wrong_shapes_and_no_hosts(text: str) -> None:
    assert problems(text)


@pytest.mark.row("C8")
@pytest.mark.parametrize(
    "hosts",
    ["h[1-1000000000]", "h[1-999999999]", "'[1:10^9]'", "h[1-400]-[1-400]", "h[0-999999999/2]"],
)
def test_a_mistyped_range_is_refused_before_it_is_expanded(hosts: str) -> None:
    started = time.monotonic()
    where, _ = problem(f'aggregates: {{a: {{hosts: ["{hosts}"]}}}}'.replace("'", ""))
    assert where.endswith(": aggregates.a.hosts[0]")
    assert time.monotonic() - started < 1


@pytest.mark.row("C8")
def test_the_cap_holds_for_all_hosts_together() -> None:
    where, what = problem("aggregates: {a: {hosts: ['a[1-60000]']}, b: {hosts: ['b[1-60000]']}}")
    assert (where, what) == ("1:1: aggregates", "120000 hosts, more than 100000")


@pytest.mark.row("C6")
def test_a_host_of_several_aggregates_is_one_host() -> None:
    inventory = read("""
aggregates:
  a: {cell: c1, hosts: ["h[1-2]"]}
  b: {site: oslo, hosts: ["h[2-3]", h3]}
""")
    hosts = {
        (host.name, host.aggregate): (host.cell, host.site)
        for aggregate in inventory.aggregates.values()
        for host in aggregate.hosts
    }
    # Cell and site are known wherever one aggregate says them.
    assert hosts == {
        ("h1", "a"): ("c1", None),
        ("h2", "a"): ("c1", "oslo"),
        ("h2", "b"): ("c1", "oslo"),
        ("h3", "b"): (None, "oslo"),
    }


@pytest.mark.row("C6")
@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (
            "aggregates: {a: {hosts: [h, {name: h, port: 3}]}}",
            "1:29: aggregates.a.hosts[1]",
            f"the host h has other settings here (port) than at {FILE}:1:26: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {user: x, hosts: [h]}, b: {hosts: [h]}}",
            "1:52: aggregates.b.hosts[0]",
            f"the host h has other settings here (user) than at {FILE}:1:35: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {cell: x, hosts: [h]}, b: {cell: y, hosts: [h]}}",
            "1:61: aggregates.b.hosts[0]",
            f"the host h is in the cell y here, and in x at {FILE}:1:35: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {site: x, hosts: [h]}, b: {site: y, hosts: [h]}}",
            "1:61: aggregates.b.hosts[0]",
            f"the host h is in the site y here, and in x at {FILE}:1:35: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {hosts: [h, {name: i, address: H}]}}",
            "1:29: aggregates.a.hosts[1]",
            f"i is the same machine and cache as h at {FILE}:1:26: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {hosts: [{name: h, address: '::1'}, {name: i, address: 0:0::1, port: 22}]}}",
            "1:53: aggregates.a.hosts[1]",
            f"i is the same machine and cache as h at {FILE}:1:26: aggregates.a.hosts[0]",
        ),
        (
            "aggregates: {a: {transport: local, hosts: [h, i]}}",
            "1:47: aggregates.a.hosts[1]",
            f"i is the same machine and cache as h at {FILE}:1:44: aggregates.a.hosts[0]",
        ),
    ],
)
def test_conflicts(text: str, where: str, what: str) -> None:
    assert problem(text) == (where, what)


@pytest.mark.row("C6")
@pytest.mark.parametrize(
    "differing",
    ["port: 23", "instances_path: /b", "proxy_jump: j", "python: podman exec b python3"],
)
def test_one_address_may_have_several_caches(differing: str) -> None:
    base = "address: 127.0.0.1, instances_path: /a"
    other = base if "instances_path" not in differing else "address: 127.0.0.1"
    second = f"{{name: i, {other}, {differing}}}"
    text = f"aggregates: {{a: {{hosts: [{{name: h, {base}}}, {second}]}}}}"
    assert len(read(text).aggregates["a"].hosts) == 2


@pytest.mark.row("C6")
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("defaults: {address: x}\naggregates: {a: {hosts: [h]}}", "1:12: defaults.address"),
        ("aggregates: {a: {address: x, hosts: [h]}}", "1:18: aggregates.a.address"),
        (
            "aggregates: {a: {hosts: [{name: 'h[1-2]', address: x}]}}",
            "1:43: aggregates.a.hosts[0].address",
        ),
    ],
)
def test_an_address_for_many_hosts_is_refused(text: str, where: str) -> None:
    assert problem(text)[0] == where


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kind: directory", "a directory image service needs 'path'"),
        ("kind: directory, path: x, cloud: y", "has no meaning for a directory image service"),
        ("kind: glance, path: x", "is for 'kind: directory' only"),
        ("kind: swift", "'swift' is none of 'glance', 'directory'"),
        ("endpoint: 'file:///etc/passwd'", "must be a URL"),
        ("endpoint: 'http://'", "must be a URL"),
        ("endpoint: 'http://h:99999'", "must be a URL"),
        ("endpoint: 'http://a b'", "must be a URL"),
        ("host_endpoint: 'http://h/?x=y'", "must be plain"),
        ("host_interface: outside", "is none of"),
    ],
)
def test_bad_image_service(text: str, what: str) -> None:
    assert what in problem(f"image_service: {{{text}}}\naggregates: {{a: {{hosts: [h]}}}}")[1]


def test_a_password_in_a_url_is_not_shown() -> None:
    text = "image_service: {endpoint: 'http://u:sesame@h'}\naggregates: {a: {hosts: [h]}}"
    assert "sesame" not in str(problems(text))


def test_image_service_by_endpoint() -> None:
    inventory = read("""
image_service:
  {endpoint: "http://127.0.0.1:9292/", host_endpoint: "https://glance.edge", host_interface: internal}
aggregates: {a: {hosts: [h]}}
""")
    assert inventory.image_service == ImageServiceSettings(
        endpoint="http://127.0.0.1:9292",
        host_endpoint="https://glance.edge",
        host_interface="internal",
    )


def test_ten_thousand_hosts_load_in_a_second() -> None:
    lines = [
        f"      - {{name: e{number:05}, address: 10.0.{number // 250}.{number % 250}}}"
        for number in range(10_000)
    ]
    text = "\n".join(["aggregates:", "  a:", "    hosts:", *lines])
    started = time.process_time()
    assert len(read(text).aggregates["a"].hosts) == 10_000
    # A second on an idle machine; the rest is for a busy one.
    assert time.process_time() - started < 3


def test_what_hosts_share_hangs_on_an_x_key() -> None:
    inventory = read(
        "x-racks:\n  gen2: &gen2 {reserve: 40GiB}\n"
        + "x-notes: {owner: , phone: ~}\n"
        + "aggregates:\n"
        + "  rack-7: {<<: *gen2, hosts: [a]}\n"
        + "  rack-8: {<<: *gen2, hosts: [b], reserve: 80GiB}\n"
    )
    reserves = [one.hosts[0].settings.reserve_bytes for one in inventory.aggregates.values()]
    assert reserves == [40 * 1024**3, 80 * 1024**3]


@pytest.mark.parametrize("nothing", ["{site: oslo}", "{hosts: []}", "{hosts: ['a1!a1']}"])
def test_an_empty_aggregate_is_no_error(nothing: str) -> None:
    inventory = read(f"aggregates: {{new: {nothing}, old: {{hosts: [h]}}}}")
    assert {name: len(one.hosts) for name, one in inventory.aggregates.items()} == {
        "new": 0,
        "old": 1,
    }


def test_a_range_as_ansible_writes_it_has_its_place_and_the_right_form() -> None:
    where, what = problem("aggregates: {a: {hosts: ['compute[01:40]']}}")
    assert where == "1:26: aggregates.a.hosts[0]"
    assert what == "'[01:40]' is a range as Ansible writes it: did you mean '[01-40]'?"


@pytest.mark.parametrize("user", ["ops@corp.example.net", r"CORP\ops", "ops+x", "svc$"])
def test_names_of_directory_services_are_taken_as_given(user: str) -> None:
    (host,) = (
        read(of_host(f"user: '{user}', proxy_jump: '{user}@bastion:2222'")).aggregates["a"].hosts
    )
    assert host.settings.user == user
    assert host.settings.proxy_jump == f"{user}@bastion:2222"
