"""Who we are and where the image service is: clouds.yaml, ``OS_*``, ``--os-*``, by openstacksdk's loader."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from keystoneauth1 import exceptions as ksa
from keystoneauth1 import noauth, token_endpoint
from openstack import exceptions as sdk
from openstack.config.loader import OpenStackConfig

from imgcache.errors import ConfigError, Problem
from imgcache.images.client import open_session
from imgcache.images.cloud import Cloud, read_ca
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keystoneauth1.plugin import BaseAuthPlugin
    from openstack.config.cloud_region import CloudRegion

    from imgcache.images.options import CloudOptions
    from imgcache.model import ImageServiceSettings

#: Any of these, as option or as ``OS_*``, means that somebody authenticates.
_IDENTITY = (
    "auth_url",
    "auth_type",
    "username",
    "user_id",
    "token",
    "application_credential_id",
    "application_credential_name",
)
#: Options that stand beside ``auth:`` in clouds.yaml; all others stand in it.
_BESIDE_AUTH = frozenset(
    {
        "auth_type",
        "region_name",
        "interface",
        "image_endpoint_override",
        "cacert",
        "cert",
        "key",
        "insecure",
    }
)
_quiet_lock = threading.Lock()


def open_cloud(settings: ImageServiceSettings, options: CloudOptions) -> Cloud:
    """Return the cloud that options, inventory, clouds.yaml and ``OS_*`` name, in this order.

    Raises:
        ConfigError: nothing is named, or what is named is incomplete or wrong.
    """
    name = options.cloud or settings.cloud or os.environ.get("OS_CLOUD")
    wanted = _wanted(settings, options, name)
    loader = _loader(name)
    region = _load(loader, name, wanted)
    config: dict[str, Any] = region.config

    def new_auth() -> BaseAuthPlugin:
        return _plugin(_load(loader, name, wanted), name)

    auth = _plugin(region, name)
    insecure, verify, cert = _tls(config, name)
    override = wanted.get("image_endpoint_override") or settings.endpoint or _override(config)
    ca_pem, ca_problem = read_ca(verify) if isinstance(verify, str) else (None, None)
    return Cloud(
        session=open_session(auth, verify=verify, cert=cert),
        kind=_kind(auth),
        new_auth=new_auth,
        override=str(override) if override else None,
        interface=config.get("image_interface") or config.get("interface") or "public",
        region=config.get("image_region_name") or config.get("region_name") or None,
        auth_url=config.get("auth", {}).get("auth_url"),
        insecure=insecure,
        ca_pem=ca_pem,
        ca_problem=ca_problem,
    )


def _plugin(region: CloudRegion, name: str | None) -> BaseAuthPlugin:
    plugin = region.get_auth()
    if plugin is None:
        raise _config_error(name, "no way to authenticate was found")
    return plugin


def _kind(auth: BaseAuthPlugin) -> Literal["identity", "token", "none"]:
    if isinstance(auth, noauth.NoAuth):
        return "none"
    return "token" if isinstance(auth, token_endpoint.Token) else "identity"


def _wanted(
    settings: ImageServiceSettings, options: CloudOptions, name: str | None
) -> dict[str, Any]:
    """Return the options as the loader takes them; without any identity: Glance without Keystone."""
    given = {key: value for key, value in options.values.items() if value not in (None, "")}
    wanted: dict[str, Any] = dict(given)
    # In both places: for some options the loader prefers what is in auth:, for others what is beside it.
    auth = {key: value for key, value in given.items() if key not in _BESIDE_AUTH}
    named = name or any(key in given or f"OS_{key.upper()}" in os.environ for key in _IDENTITY)
    if not named:
        if not settings.endpoint:
            raise _config_error(
                None,
                "nothing says which cloud to use",
                "give --os-cloud, cloud: or endpoint: in the inventory's image_service, OS_CLOUD, or OS_*",
            )
        wanted["auth_type"] = "none"
        auth["endpoint"] = settings.endpoint
    return {**wanted, "auth": auth}


def _config_error(name: str | None, what: str, hint: str | None = None) -> ConfigError:
    where = f"cloud {printable(name)}" if name else "the OS_* variables and --os-* options"
    message = "the image service's configuration is wrong"
    return ConfigError(message, [Problem(where, what, hint)])


# ---------------------------------------------------------------------------------------------- files


def config_folders() -> tuple[Path, ...]:
    """Return where clouds.yaml is looked for: never the working directory, unlike openstacksdk."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    folders = (home / "openstack", Path("~/.config/openstack").expanduser(), Path("/etc/openstack"))
    return tuple(dict.fromkeys(folders))


def _files(stem: str) -> list[str]:
    return [
        str(folder / f"{stem}.{end}")
        for folder in config_folders()
        for end in ("yaml", "yml", "json")
    ]


class _Loader(OpenStackConfig):
    """openstacksdk's loader; adds what the given credentials mean, and refuses what cannot work."""

    name: str | None = None

    def auth_config_hook(self, config: dict[str, Any]) -> dict[str, Any]:
        """See ``OpenStackConfig``: called with everything merged, before the plugin is made."""
        config["auth_type"] = _auth_type(config)
        _check(config, self.name)
        return config


def _loader(name: str | None) -> _Loader:
    if name:
        _check_files()
    try:
        with _quiet():
            loader = _Loader(
                # without a name no entry may be picked just because it is the only one
                load_yaml_config=bool(name),
                config_files=_files("clouds"),
                secure_files=_files("secure"),
                vendor_files=_files("clouds-public"),
                app_name="imgcache",
            )
    except (sdk.ConfigException, OSError, ValueError, TypeError, AttributeError) as error:
        raise _config_error(name, printable(str(error))) from error
    loader.name = name
    return loader


def _check_files() -> None:
    """Refuse a named file that is missing, and files that are damaged or that others can write.

    The loader itself passes over damaged files, and would then say that there is no such cloud.
    """
    problems: list[Problem] = []
    for variable, stem in (
        ("OS_CLIENT_CONFIG_FILE", "clouds"),
        ("OS_CLIENT_SECURE_FILE", "secure"),
    ):
        named = os.environ.get(variable)
        if named and not Path(named).exists():
            problems.append(Problem(named, f"there is no such file, but {variable} names it"))
        paths = [Path(path) for path in ([named] if named else []) + _files(stem)]
        problem = next((_file_problem(path) for path in paths if path.exists()), None)
        if problem:
            problems.append(problem)
    if problems:
        message = "the cloud configuration cannot be used"
        raise ConfigError(message, problems)


def _file_problem(path: Path) -> Problem | None:
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Problem(str(path), f"cannot be read: {printable(str(error))}")
    foreign = os.geteuid() != 0 and status.st_uid not in {0, os.geteuid()}
    if foreign or status.st_mode & stat.S_IWOTH:
        return Problem(
            str(path), "others can write it, and so say where passwords are sent", "chmod go-w"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        return Problem(f"{path}{place}", f"is not valid YAML: {printable(error.problem or '')}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Problem(str(path), f"is not valid YAML: {type(error).__name__}")
    return (
        None
        if isinstance(content, dict)
        else Problem(str(path), "must be a mapping with the key clouds")
    )


# --------------------------------------------------------------------------------------------- merging


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep openstacksdk's warnings from the operator: they speak to programmers, about its own parts."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load(loader: _Loader, name: str | None, wanted: Mapping[str, Any]) -> CloudRegion:
    try:
        with _quiet():
            return loader.get_one(cloud=name, **wanted)
    except ksa.MissingRequiredOptions as error:
        missing = ", ".join(str(option.dest) for option in error.options)
        what = f"is incomplete: {missing} missing"
        raise _config_error(name, what, "set it in clouds.yaml or as OS_*") from error
    except ksa.AuthPluginException as error:
        raise _config_error(name, printable(str(error)), "check auth_type and auth") from error
    except sdk.ConfigException as error:
        hint = None
        if name and name not in loader.get_cloud_names():
            known = (
                ", ".join(printable(word) for word in sorted(loader.get_cloud_names())) or "none"
            )
            places = ", ".join(str(folder) for folder in config_folders())
            hint = f"known are: {known}; looked in {places} and OS_CLIENT_CONFIG_FILE"
        raise _config_error(name, printable(str(error)), hint) from error


def _auth_type(config: Mapping[str, Any]) -> str:
    """Return the auth type; where it is openstacksdk's default, what the given credentials mean."""
    flat = {**config, **config.get("auth", {})}
    auth_type = str(config.get("auth_type") or "none")
    if auth_type == "password" and not flat.get("password"):
        if flat.get("application_credential_id") or flat.get("application_credential_name"):
            return "v3applicationcredential"
        if flat.get("token"):
            return "token"
    return auth_type


def _check(config: Mapping[str, Any], name: str | None) -> None:
    flat, auth_type = {**config, **config.get("auth", {})}, config["auth_type"]
    if flat.get("system_scope"):
        what = "has a system scope (system_scope), and Glance needs a project scope"
        raise _config_error(name, what, "unset OS_SYSTEM_SCOPE and set OS_PROJECT_NAME")
    if auth_type in {"password", "v3password"} and not flat.get("password"):
        what = "has no password, token or application credential"
        raise _config_error(
            name, what, "set OS_PASSWORD, or password: in clouds.yaml or secure.yaml"
        )
    scoped = any(
        flat.get(key) for key in ("project_id", "project_name", "domain_id", "domain_name")
    )
    if auth_type == "v3applicationcredential" and scoped:
        what = "an application credential has its own project and must not be given another"
        raise _config_error(name, what, "unset OS_PROJECT_ID, OS_PROJECT_NAME and OS_DOMAIN_*")


def _override(config: Mapping[str, Any]) -> str | None:
    value = config.get("image_endpoint_override") or config.get("image_endpoint")
    if not value and config.get("auth_type") in {"none", "admin_token", "token_endpoint"}:
        value = config.get("endpoint") or config.get("auth", {}).get("endpoint")
    return str(value) if value else None


# ------------------------------------------------------------------------------------------------- TLS


def _tls(
    config: Mapping[str, Any], name: str | None
) -> tuple[bool, bool | str, str | tuple[str, str] | None]:
    """Return whether certificates are not checked, what requests is to verify with, and our certificate."""
    insecure = _true(config.get("insecure")) or not _true(config.get("verify", True))
    verify: bool | str = not insecure
    if config.get("cacert") and not insecure:
        verify = str(Path(str(config["cacert"])).expanduser())
        if not Path(verify).exists():
            what = f"there is no CA file {printable(verify)}"
            raise _config_error(name, what, "check OS_CACERT or cacert:")
    if not config.get("cert"):
        return insecure, verify, None
    cert = str(Path(str(config["cert"])).expanduser())
    key = config.get("key")
    return insecure, verify, (cert, str(Path(str(key)).expanduser())) if key else cert


def _true(value: object) -> bool:
    return value.lower() in {"1", "true", "yes", "on"} if isinstance(value, str) else bool(value)
