"""Who we are and where the image service is: clouds.yaml, ``OS_*``, ``--os-*``, by openstacksdk's loader."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import requests
from keystoneauth1 import exceptions as ksa
from keystoneauth1 import loading, noauth, token_endpoint
from openstack import exceptions as sdk
from openstack.config.loader import OpenStackConfig

from imgcache.errors import ConfigError, Problem
from imgcache.images.client import error_from, open_session
from imgcache.images.cloud import Cloud, read_ca
from imgcache.images.cloud_files import CloudFiles, candidates, config_folders
from imgcache.text import printable, without_user_info

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
#: Beside them, keys with these endings stand beside ``auth:``, too.
_BESIDE_ENDINGS = (
    "_api_version",
    "_endpoint_override",
    "_interface",
    "_region_name",
    "_service_type",
)
_BESIDE_MORE = frozenset({"cloud", "profile", "regions", "verify"})
#: What the key of a URL ends with; the values of others may hold an ``@`` and mean nothing by it.
_URL_ENDINGS = ("url", "uri", "endpoint", "endpoint_override")
#: Older keystoneauth does not mark them.
_INTERACTIVE = frozenset({"v3oidcdeviceauthz", "v3websso"})
_WRONG = "the image service's configuration is wrong"
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
    _check_interactive(auth, region.config, name)
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
        notes=_region_notes(loader.files, options),
    )


def _region_notes(files: CloudFiles | None, options: CloudOptions) -> tuple[str, ...]:
    """Say which region is used when that was not chosen."""
    regions = files.regions() if files and not options.values.get("region_name") else ()
    if len(regions) < 2:
        return ()
    names = ", ".join(printable(region) for region in regions)
    return (
        f"the region is {printable(regions[0])}, the first of {names} in clouds.yaml; "
        "--os-region-name names another",
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
    return ConfigError(_WRONG, [Problem(_where(name), what, hint)])


def _where(name: str | None) -> str:
    return f"cloud {printable(name)}" if name else "the OS_* variables and --os-* options"


# --------------------------------------------------------------------------------------------- loading


class _Loader(OpenStackConfig):
    """openstacksdk's loader; adds what the given credentials mean, and refuses what cannot work."""

    name: str | None = None
    files: CloudFiles | None = None

    def auth_config_hook(self, config: dict[str, Any]) -> dict[str, Any]:
        """See ``OpenStackConfig``: called with everything merged, before the plugin is made."""
        config["auth_type"] = _auth_type(config)
        _check(config, self.name)
        problems = [*self._url_problems(config), *self._key_problems(config)]
        if problems:
            raise ConfigError(_WRONG, problems)
        return config

    def place(self, *keys: str) -> str:
        """Return where a setting stands; where no file has it, its name."""
        at = self.files.place(*keys) if self.files else None
        return at or f"{_where(self.name)}: {printable(keys[-1])}"

    def _url_problems(self, config: Mapping[str, Any]) -> Iterator[Problem]:
        """Find URLs with a user or password, whose values are not repeated."""
        auth: Mapping[str, Any] = config.get("auth", {})
        settings = [((key,), value) for key, value in config.items()]
        for keys, value in settings + [(("auth", key), value) for key, value in auth.items()]:
            if value and keys[-1].endswith(_URL_ENDINGS):
                if "@" in str(value):
                    hint = "give the user and password as settings of their own"
                    yield Problem(self.place(*keys), "holds a user or password", hint)
                elif keys[-1] == "auth_url" and not _is_http(str(value)):
                    what = f"{printable(str(value))} is no http or https URL"
                    yield Problem(self.place(*keys), what)

    def _key_problems(self, config: dict[str, Any]) -> Iterator[Problem]:
        """Find keys of ``auth:`` that the auth type does not take; those of the environment are dropped."""
        known = _options(config["auth_type"])
        for key in sorted(set(config["auth"]) - known) if known else ():
            place = self.files.place("auth", key) if self.files else None
            if place is None:
                del config["auth"][key]
                continue
            if key in _BESIDE_AUTH | _BESIDE_MORE or key.endswith(_BESIDE_ENDINGS):
                yield Problem(place, "does not belong into auth:", f"write {key}: beside auth:")
                continue
            near = get_close_matches(key, known, n=1)
            what = f"the auth type {printable(config['auth_type'])} has no such option"
            takes = f"it takes {', '.join(sorted(known))}"
            yield Problem(place, what, f"did you mean {near[0]}?" if near else takes)


def _options(auth_type: str) -> frozenset[str]:
    """Return the options that an auth type takes in ``auth:``, old names too; empty: not known.

    Those of v3multifactor depend on its methods.
    """
    if auth_type == "v3multifactor":
        return frozenset()
    kind = {"None": "none", "token_endpoint": "admin_token"}.get(auth_type, auth_type)
    options = loading.get_plugin_loader(kind).get_options()
    names = [
        name
        for option in options
        for name in (option.dest, option.name, *(old.name for old in option.deprecated))
    ]
    return frozenset(name.replace("-", "_") for name in names)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _loader(name: str | None) -> _Loader:
    files = CloudFiles(name) if name else None
    try:
        with _quiet():
            loader = _Loader(
                # without a name no entry may be picked just because it is the only one
                load_yaml_config=bool(name),
                config_files=candidates("clouds"),
                secure_files=candidates("secure"),
                vendor_files=candidates("clouds-public"),
                app_name="imgcache",
            )
    except (sdk.ConfigException, OSError, ValueError, TypeError, AttributeError) as error:
        raise _config_error(name, printable(without_user_info(str(error)))) from error
    loader.name, loader.files = name, files
    return loader


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
        what = printable(without_user_info(str(error)))
        raise _config_error(name, what, "check auth_type and auth") from error
    except sdk.ConfigException as error:
        what, hint = printable(without_user_info(str(error))), None
        known = [str(word) for word in loader.get_cloud_names()]
        if name and name not in known:
            names = ", ".join(printable(word) for word in sorted(known)) or "none"
            places = ", ".join(str(folder) for folder in config_folders())
            hint = f"known are: {names}; looked in {places} and OS_CLIENT_CONFIG_FILE"
        raise _config_error(name, what, hint) from error
    except requests.RequestException as error:
        raise error_from(error, f"the profile of {_where(name)}") from error
    except ImportError as error:
        what = f"needs a Python package that is not there: {' '.join(str(error).split())}"
        hint = "install it beside imgcache, or use another auth_type, an application credential say"
        problem = Problem(loader.place("auth_type"), printable(what), hint)
        raise ConfigError(_WRONG, [problem]) from error
    except (TypeError, AttributeError, ValueError, LookupError) as error:
        # Said without its text: it may be a piece of any value, a password too.
        what = f"openstacksdk cannot use it ({type(error).__name__})"
        hint = "is each value of the right kind, and each { and } in a value written twice?"
        raise _config_error(name, what, hint) from error


def _check_interactive(auth: BaseAuthPlugin, config: Mapping[str, Any], name: str | None) -> None:
    """Refuse a login that waits for a person where there is none; else show what it asks for.

    Source: keystoneauth1 ``identity/v3/{websso,oidc}.py``: they log where to go, and have deadlines.
    """
    interactive = (
        getattr(auth, "interactive_unscoped_auth", False)
        or config.get("auth_type") in _INTERACTIVE
        or getattr(auth, "idp_otp_key", None)
    )
    # the code that v3oidcauthcode takes is a setting like others
    if not interactive or getattr(auth, "code", None):
        return
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        what = f"auth_type {printable(str(config.get('auth_type')))} waits for a person to log in"
        hint = (
            "run it in a terminal, or use an application credential (openstack application credential "
            "create), or a token (openstack token issue) as OS_TOKEN with OS_AUTH_TYPE=v3token"
        )
        raise _config_error(name, f"{what}, and there is no terminal", hint)
    log = logging.getLogger("keystoneauth.identity.v3")
    if not log.handlers:
        log.addHandler(_Shown())


class _Shown(logging.Handler):
    """Shows a library's messages on standard error, as one safe line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        text = printable(without_user_info(record.getMessage()), 2000)
        sys.stderr.write(f"imgcache: {text}\n")
        sys.stderr.flush()


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
