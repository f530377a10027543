"""The commands about the life of the cache as whole processes, on hosts that are this machine."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import jsonschema
import pytest

from imgcache.cli import main
from servers.life_fixtures import DAY, IDS, LifeSite, schema

if TYPE_CHECKING:
    from pathlib import Path

ERROR = schema("error")


# ---------------------------------------------------------------------------------------------------- list


def test_list_shows_what_is_where(life: LifeSite) -> None:
    done = life.run("list", "--all")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:3] == ["HOST", "IMAGE", "NAME"]
    assert ["edge1-[01-02]", "debian-12", "original", "raw"] in [line[:4] for line in lines]
    assert ["edge1-01", "rescue", "original", "raw"] in [line[:4] for line in lines]

    life.boot("edge1-02", "debian-12")
    document = life.result("list", "--all", "debian-12")
    users = {one["host"]: (one["image_id"], one["users"]) for one in document["entries"]}
    assert users == {"edge1-01": (IDS["debian-12"], 0), "edge1-02": (IDS["debian-12"], 1)}
    assert all(one["managed"] and one["known_by"] == "manifest" for one in document["entries"])


def test_list_knows_by_hash_what_imgcache_did_not_fetch(life: LifeSite) -> None:
    (life.final("edge1-01", "rescue").parent / ".imgcache").rename(life.folder / "elsewhere")
    document = life.result("list", "--host", "edge1-01", "rescue")
    (one,) = document["entries"]
    assert (one["managed"], one["known_by"], one["image_name"]) == (False, "hash", "rescue")


def test_lists_filters_add_up(life: LifeSite) -> None:
    life.boot("edge1-01", "debian-12")
    life.age("rescue", 40 * DAY, "edge1-01")
    life.age("debian-12", 40 * DAY, "edge1-01")
    life.forget_image("rescue")

    def found(*argv: str) -> set[tuple[str, str]]:
        entries = life.result("list", "--all", *argv)["entries"]
        return {(one["host"], one["image_name"]) for one in entries}

    assert found("--unused") == {("edge1-01", "rescue"), ("edge1-02", "debian-12")}
    assert found("--older-than", "30d") == {("edge1-01", "rescue"), ("edge1-01", "debian-12")}
    assert found("--older-than", "30d", "--unused") == {("edge1-01", "rescue")}
    assert found("--gone") == {("edge1-01", "rescue")}
    assert found("--older-than", "6w") == set()


def test_a_missing_image_is_told_with_5(life: LifeSite) -> None:
    done = life.run("list", "--all", "--missing", "rescue", "--missing", "debian-12")
    assert done.returncode == 5, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["edge1-02", IDS["rescue"], "rescue"]
    ]
    document = life.result("list", "--all", "--missing", "rescue", code=5)
    assert [one["host"] for one in document["missing"]] == ["edge1-02"]
    assert life.run("list", "--all", "--missing", "debian-12").returncode == 0


def test_the_matrix_is_one_screen(life: LifeSite) -> None:
    life.boot("edge1-01", "debian-12")
    done = life.run("list", "--all", "--matrix")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "HOST      debian-12  rescue\n"
        "edge1-01      u        x\n"
        "edge1-02      x        .\n"
        "\n"
        "u in use, x there, unused, . not there\n"
    )
    narrow = life.run("list", "--all", "--matrix", COLUMNS="10")
    assert narrow.stdout.isascii()


def test_a_host_that_fails_is_told_in_every_form(life: LifeSite) -> None:
    life.instances("edge1-02").rename(life.folder / "moved")
    for form in (["-f", "csv"], ["--matrix"], ["-v"]):
        done = life.run("list", "--all", *form)
        assert done.returncode == 1
        assert "edge1-02: error (nopath)" in done.stderr
        assert ("edge1-02  error    nopath" in done.stdout) == (form != ["-f", "csv"])
    document = life.result("status", "--all", code=1)
    assert [one["code"] for one in document["failures"]] == ["nopath"]
    # Nobody takes the gate for open when a host could not be looked at.
    assert life.run("list", "--all", "--missing", "debian-12").returncode == 1


def test_list_does_not_take_a_name_for_missing_when_the_image_service_is_down(
    life: LifeSite,
) -> None:
    inventory = life.folder / "inventory.yaml"
    with socket.socket() as nobody:  # bound and not listening: refused
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        service = f"image_service: {{kind: glance, endpoint: '{url}'}}"
        told = inventory.read_text("utf-8")
        old = "image_service:\n  kind: directory\n  path: images\n"
        assert old in told
        inventory.write_text(told.replace(old, f"{service}\n"), "utf-8")
        for argv in (
            ["debian-12"],
            ["--missing", "debian-12"],
            ["--missing", IDS["rescue"], "rescue"],
        ):
            done = life.run("list", "--all", *argv)
            assert done.returncode == 4, done.stderr
            assert url in done.stderr
            assert "no such image" not in done.stderr
        assert life.run("list", "--all", "--missing", IDS["rescue"]).returncode == 5
        assert life.run("list", "--all").returncode == 0


# -------------------------------------------------------------------------------------------------- status


def test_status_tells_room_and_ends_with_5_above_the_limit(life: LifeSite) -> None:
    life.nova_conf("[DEFAULT]\nreserved_host_disk_mb = 2048\n")
    life.age("rescue", 2 * DAY, "edge1-01")
    document = life.result("status", "--all")
    first, second = document["hosts"]
    assert first["cache_bytes"] > second["cache_bytes"] > 0
    assert (first["reclaimable_entries"], second["reclaimable_entries"]) == (1, 0)
    assert first["reclaimable_bytes"] == first["cache_bytes"] - second["cache_bytes"]
    assert first["reserved_host_disk_mb"] == 2048
    assert first["over_threshold"] is None
    assert {(one["group"], one["name"]) for one in document["totals"]} == {
        ("aggregate", "edge-1"), ("cell", "cell1"),
    }  # fmt: skip
    above = life.result("status", "--all", "--check", "--max-used", "0.0001%", code=5)
    assert all(one["over_threshold"] for one in above["hosts"])
    told = life.run("status", "--all", "--check", "--max-used", "0.0001%").stderr
    assert told.count("above 0%") == len(above["hosts"])
    assert life.run("status", "--all", "--check", "--max-used", "100%").returncode == 0


# --------------------------------------------------------------------------------------------------- prune


def test_prune_removes_what_is_old_and_unused_and_says_why_the_rest_stays(life: LifeSite) -> None:
    life.age("debian-12", 2 * DAY)
    life.boot("edge1-02", "debian-12")
    before = life.snapshot()
    shown = life.result("prune", "--all", "--dry-run")
    assert life.snapshot() == before
    assert shown["bytes_freed"] > 0
    told = {one["reason"] for one in shown["outcomes"] if one["outcome"] == "skipped"}
    assert [why.split(", limit")[0] for why in told] == [
        "dry run: would be removed: unused for 2 days"
    ]

    log = life.folder / "run.log"
    document = life.result("prune", "--all", "--log-file", str(log))
    words = {(one["host"], one["image_name"]): one for one in document["outcomes"]}
    assert {key: (one["outcome"], one["code"]) for key, one in words.items()} == {
        ("edge1-01", "debian-12"): ("removed", None),
        ("edge1-01", "rescue"): ("kept", "young"),
        ("edge1-02", "debian-12"): ("kept", "in-use"),
    }
    assert (
        "disk" in words["edge1-02", "debian-12"]["reason"]
        or "i-1" in (words["edge1-02", "debian-12"]["reason"])
    )
    assert document["bytes_freed"] == shown["bytes_freed"]
    assert document["bytes_freed"] == words["edge1-01", "debian-12"]["bytes"]
    assert not life.final("edge1-01", "debian-12").exists()
    assert life.final("edge1-02", "debian-12").exists()
    assert (
        f"removed: unused for 2 days, limit 24.0 h entry={life.final('x', 'debian-12').name}"
        in (log.read_text("utf-8"))
    )


def test_prunes_options_reach_the_policy(life: LifeSite) -> None:
    for image in IDS:
        life.age(image, 5 * DAY, "edge1-01")

    def words(*argv: str) -> dict[str, tuple[str, str | None]]:
        found = life.words("prune", "--host", "edge1-01", "--dry-run", *argv)
        return {image: found["edge1-01", image] for image in IDS}

    gone, kept = ("skipped", "dry-run"), ("kept", "young")
    assert words("--min-age", "4d") == {"debian-12": gone, "rescue": gone}
    assert words("--min-age", "6d") == {"debian-12": kept, "rescue": kept}
    assert words("--keep", "rescue") == {"debian-12": gone, "rescue": ("kept", "keep")}
    assert words("--min-age", "6d", "--max-size", "1k") == {"debian-12": gone, "rescue": gone}
    assert words("--min-age", "6d", "--min-free", "99.99%") == {"debian-12": gone, "rescue": gone}
    life.forget_image("rescue")
    assert words("--min-age", "6d", "--gone") == {"debian-12": kept, "rescue": gone}
    life.nova_conf("[DEFAULT]\nremove_unused_base_images = false\n")
    policy = ("kept", "policy")
    assert words() == {"debian-12": policy, "rescue": policy}
    assert words("--override-host-policy") == {"debian-12": gone, "rescue": gone}


@pytest.mark.row("D3")
def test_a_plan_above_the_ceiling_is_shown_and_refused(life: LifeSite) -> None:
    life.age("debian-12", 2 * DAY)
    before = life.snapshot()
    done = life.run("prune", "--all", "--max-delete", "50%", "-f", "json")
    assert done.returncode == 3
    assert life.snapshot() == before
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema("prune"))
    assert document["totals"]["skipped"] == 2
    assert document["bytes_freed"] == 0
    error = json.loads(done.stderr.splitlines()[-1])
    jsonschema.validate(error, ERROR)
    assert "--max-delete" in error["error"]["message"]
    assert life.run("prune", "--all", "--max-delete", "1").returncode == 0


@pytest.mark.row("D2")
@pytest.mark.parametrize(
    "argv",
    [
        ["prune", "--all", "--min-age", "0"],
        ["prune", "--all", "--resized-min-age", "0h"],
        ["prune", "--all", "--min-age", "999999999999d"],
        ["prune", "--all", "--max-size", "0"],
        ["prune", "--all", "--min-free", "100%"],
        ["clean", "--all", "--stall-age", "0"],
    ],
)
@pytest.mark.usefixtures("life_light")
def test_what_would_take_everything_is_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, (stdout, stderr) = main([*argv, "-f", "json"]), capsys.readouterr()
    assert (code, stdout) == (3, "")
    error = json.loads(stderr.splitlines()[-1])
    jsonschema.validate(error, ERROR)
    assert argv[2] in error["error"]["message"]
    assert error["error"]["hint"]


# ------------------------------------------------------------------------------- clean, verify, delete


def test_clean_keeps_what_may_be_alive_and_removes_damage_when_asked(life: LifeSite) -> None:
    part = life.final("edge1-01", "rescue").with_suffix(".part")
    part.write_bytes(b"half")
    damaged = life.final("edge1-01", "rescue")
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    life.age("rescue", 2 * DAY, "edge1-01")
    assert life.words("clean", "--all") == {("edge1-01", part.name): ("kept", "young")}
    assert damaged.exists()
    words = life.words("clean", "--all", "--invalid", "--rate-limit", "100M", "--dry-run")
    assert words["edge1-01", "rescue"] == ("skipped", "dry-run")
    words = life.words("clean", "--all", "--invalid")
    assert words["edge1-01", "rescue"] == ("removed", None)
    assert not damaged.exists()
    assert part.exists()
    assert life.final("edge1-01", "debian-12").exists()


@pytest.mark.parametrize("more", ["", ", endpoint: 'http://127.0.0.1:1'"])
def test_clean_judges_what_nova_fetched_when_the_image_service_can_be_asked(
    more: str, life: LifeSite
) -> None:
    for image in IDS:
        final = life.final("edge1-01", image)
        (final.parent / ".imgcache" / f"{final.name}.json").unlink()
    short = life.final("edge1-01", "rescue")
    short.write_bytes(b"half" * 256)
    life.age("rescue", 2 * DAY, "edge1-01")
    life.age("debian-12", 2 * DAY, "edge1-01")
    inventory = life.folder / "inventory.yaml"
    told = inventory.read_text("utf-8")
    service = f"image_service: {{kind: glance{more}}}"  # no word about a cloud, or nobody there
    old = "image_service:\n  kind: directory\n  path: images\n"
    inventory.write_text(told.replace(old, f"{service}\n"), "utf-8")
    done = life.run("clean", "--all", "--invalid")
    assert done.returncode == 0, done.stderr
    assert "without the image service" in done.stderr
    assert short.exists()
    inventory.write_text(told, "utf-8")
    (one,) = life.result("clean", "--all", "--invalid")["outcomes"]
    assert (one["entry"], one["outcome"]) == (short.name, "removed")
    assert "of rescue" in one["reason"]
    assert not short.exists()


def test_verify_finds_damage_and_repairs_it(life: LifeSite) -> None:
    whole = life.final("edge1-01", "rescue").read_bytes()
    assert set(life.words("verify", "--all").values()) == {("intact", None)}
    life.final("edge1-01", "rescue").write_bytes(b"X" + whole[1:])
    life.age("rescue", 2 * DAY, "edge1-01")
    damaged = life.words("verify", "--all", "rescue", code=5)
    assert damaged["edge1-01", "rescue"] == ("damaged", "damaged")
    assert damaged["edge1-02", "rescue"][0] == "absent"
    repaired = life.words("verify", "--all", "--repair")
    assert repaired["edge1-01", "rescue"][0] == "repaired"
    assert life.final("edge1-01", "rescue").read_bytes() == whole


def test_verify_says_once_what_is_damaged_and_why_that_stays(life: LifeSite) -> None:
    content = life.final("edge1-01", "rescue").read_bytes()
    life.final("edge1-01", "rescue").write_bytes(b"X" + content[1:])
    life.age("rescue", 2 * DAY, "edge1-01")
    life.boot("edge1-01", "rescue")
    (one,) = life.result("verify", "--host", "edge1-01", "--repair", "rescue", code=5)["outcomes"]
    assert (one["outcome"], one["code"]) == ("damaged", "in-use")
    found, stays = one["reason"].split("; not repaired: ")
    assert stays.startswith("used by 1")
    assert found not in stays


def test_verify_adopts_what_it_can_prove(life: LifeSite) -> None:
    notes = life.final("edge1-01", "rescue").parent / ".imgcache"
    for path in notes.glob("*.json"):
        path.unlink()
    life.final("edge1-01", "debian-12").write_bytes(b"something else")
    words = life.words("verify", "--host", "edge1-01", "--adopt")
    assert words["edge1-01", "rescue"] == ("adopted", None)
    assert words["edge1-01", "debian-12"][0] == "unmanaged"
    assert life.words("verify", "--host", "edge1-01", "rescue") == {
        ("edge1-01", "rescue"): ("intact", None)
    }


def test_delete_removes_what_is_named_and_fails_for_what_stays(life: LifeSite) -> None:
    life.boot("edge1-01", "debian-12")
    assert life.words("delete", "--all", "debian-12", code=1) == {
        ("edge1-01", "debian-12"): ("kept", "in-use"),
        ("edge1-02", "debian-12"): ("removed", None),
    }
    assert life.final("edge1-01", "debian-12").exists()
    # By its id, without the image service.
    (life.folder / "images" / "images.yaml").unlink()
    words = life.words("delete", "--all", IDS["rescue"])
    assert sorted(word for word, _ in words.values()) == ["absent", "removed"]
    assert not life.final("edge1-01", "rescue").exists()


# --------------------------------------------------------------------------------------------------- pins


def test_pins_keep_and_refresh_renews(life: LifeSite) -> None:
    pinned = life.words("pin", "--all", "--for", "30d", "debian-12")
    assert set(pinned.values()) == {("pinned", None)}
    life.age("debian-12", 3 * DAY)
    life.age("rescue", 3 * DAY, "edge1-01")
    assert life.words("prune", "--all", "--dry-run") == {
        ("edge1-01", "debian-12"): ("kept", "pinned"),
        ("edge1-02", "debian-12"): ("kept", "pinned"),
        ("edge1-01", "rescue"): ("skipped", "dry-run"),
    }
    assert life.words("delete", "--host", "edge1-01", "debian-12", code=1) == {
        ("edge1-01", "debian-12"): ("kept", "pinned")
    }
    assert life.words("refresh", "--all") == {
        ("edge1-01", "debian-12"): ("renewed", None),
        ("edge1-02", "debian-12"): ("renewed", None),
    }
    assert life.final("edge1-02", "debian-12").stat().st_mtime > time.time() - 60
    assert life.final("edge1-01", "rescue").stat().st_mtime < time.time() - 2 * DAY
    unpinned = life.words("unpin", "--all", IDS["debian-12"])
    assert {word for word, _ in unpinned.values()} == {"unpinned"}
    assert life.words("refresh", "--all") == {}


def test_pins_end_when_they_were_told_to(life: LifeSite) -> None:
    def until() -> str | None:
        (one,) = life.result("list", "--host", "edge1-01", "rescue")["entries"]
        shown: str | None = one["pinned_until"]
        return shown

    year = time.gmtime().tm_year + 1
    life.words("pin", "--host", "edge1-01", "--until", f"{year}-01-31", "rescue")
    assert until() == f"{year}-01-31T00:00:00Z"
    life.words("pin", "--host", "edge1-01", "--forever", "rescue")
    assert until() == "forever"
    life.words("unpin", "--host", "edge1-01", "rescue")
    assert until() is None
    done = life.run("precache", "--host", "edge1-01", "--keep-for", "72h", "rescue")
    assert done.returncode == 0, done.stderr
    assert until() is not None


def test_a_pin_without_a_place_is_an_error(life: LifeSite) -> None:
    words = life.words("pin", "--all", "--forever", "rescue", code=1)
    assert words["edge1-02", "rescue"] == ("error", "absent")


# -------------------------------------------------------------------------------------------------- common


def test_a_dry_run_of_any_command_changes_nothing(life: LifeSite) -> None:
    life.age("debian-12", 3 * DAY)
    life.age("rescue", 3 * DAY, "edge1-01")
    damaged = life.final("edge1-02", "debian-12")
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    life.age("debian-12", 3 * DAY)
    life.run("pin", "--host", "edge1-01", "--for", "1d", "rescue")
    for lock in life.folder.glob("*/locks/*"):
        lock.unlink()
    before = life.snapshot()
    for argv in (
        ["prune"],
        ["clean", "--invalid"],
        ["verify"],
        ["verify", "--adopt", "--repair"],
        ["delete", "debian-12"],
        ["pin", "--forever", "debian-12"],
        ["unpin", "rescue"],
        ["refresh"],
        ["precache", "--keep-for", "1h", "rescue"],
    ):
        done = life.run(*argv, "--all", "--dry-run", "-f", "json")
        assert done.returncode in {0, 1, 5}, done.stderr
        assert life.snapshot() == before, argv


def test_columns_and_quiet_are_as_everywhere(life: LifeSite) -> None:
    done = life.run("prune", "--all", "-q", "-f", "value", "-c", "host", "-c", "outcome")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["edge1-01\tkept"] * 2 + ["edge1-02\tkept"]
    done = life.run("status", "--all", "-c", "free")
    assert done.returncode == 2
    assert "filesystem_free_bytes" in done.stderr


@pytest.fixture
def life_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site whose hosts must not be contacted."""
    (tmp_path / "inventory.yaml").write_text(
        "image_service: {kind: directory, path: images}\n"
        "aggregates: {edge-1: {hosts: [{name: h1, transport: local, python: /nonexistent}]}}\n"
    )
    (tmp_path / "inventory.yaml").chmod(0o600)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "images.yaml").write_text("images: []\n")
    monkeypatch.setenv("IMGCACHE_INVENTORY", str(tmp_path / "inventory.yaml"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list"], "no hosts selected"),
        (["prune"], "no hosts selected"),
        (["clean", "--aggregate", "edge-2"], "edge-2"),
        (["delete", "--all"], "IMG"),
        (["pin", "--all", "debian-12"], "--for, --until and --forever"),
        (["pin", "--all", "--for", "1d", "--forever", "debian-12"], "one of --for"),
        (["pin", "--all", "--until", "2020-01-01", "debian-12"], "past"),
        (["prune", "--all", "--min-age", "24"], "'24' is not an age"),
        (["prune", "--all", "--max-size", "lots"], "'lots' is not a size"),
        (["prune", "--all", "--max-delete", "-1"], "--max-delete"),
        (["status", "--all", "--max-used", "50%"], "--check"),
        (["status", "--all", "--check", "--max-used", "0.5"], "is not a share"),
        (["verify", "--all", "--rate-limit", "0"], "nothing moves"),
        (["list", "--all", "--matrix", "-f", "json"], "--matrix"),
        (["list", "--all", "--matrix", "-c", "host"], "--matrix"),
        (["list", "--all", "--missing", "x", "-c", "age_s"], "no such column"),
        (["prune", "--all", "-c", "nothing"], "no such column"),
    ],
)
@pytest.mark.usefixtures("life_light")
def test_bad_input_is_told_before_anything_is_done(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, (stdout, stderr) = main(argv), capsys.readouterr()
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert "hint:" in stderr


def test_an_image_that_cannot_be_told_ends_with_4(life: LifeSite) -> None:
    before = life.snapshot()
    for command in (["delete"], ["pin", "--forever"], ["unpin"], ["verify"], ["list"]):
        done = life.run(*command, "--all", "debain-12")
        assert (done.returncode, done.stdout) == (4, ""), command
        assert "debain-12" in done.stderr
    assert life.snapshot() == before


@pytest.mark.parametrize("service", ["good", "none", "broken"])
def test_prune_and_verify_name_what_nova_fetched_where_the_image_service_can(
    service: str, life: LifeSite
) -> None:
    """And need it for nothing: prune runs in cron."""
    final = life.final("edge1-01", "rescue")
    (final.parent / ".imgcache" / f"{final.name}.json").unlink()
    life.age("rescue", 2 * DAY, "edge1-01")
    inventory = life.folder / "inventory.yaml"
    told = inventory.read_text("utf-8")
    if service == "none":
        old = "image_service:\n  kind: directory\n  path: images\n"
        inventory.write_text(told.replace(old, "image_service: {kind: glance}\n"), "utf-8")
    if service == "broken":
        (life.folder / "images" / "images.yaml").write_text("images: 7")
    label = "rescue" if service == "good" else final.name
    assert life.words("verify", "--all")["edge1-01", label][0] == "unmanaged"
    done = life.run("prune", "--all", "--dry-run")
    assert done.returncode == 0
    assert "image service" not in done.stderr
    assert life.words("prune", "--all")["edge1-01", label][0] == "removed"
