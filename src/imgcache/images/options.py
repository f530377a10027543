"""Who we are to the image service, as the command line says it. Light: imports no OpenStack library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The ``--os-*`` options that are understood, without their ``--os-``, as openstacksdk names them; each
#: is also an ``OS_*`` variable and a key of clouds.yaml.
OPTION_NAMES = (
    "auth_type",
    "auth_url",
    "username",
    "user_id",
    "user_domain_id",
    "user_domain_name",
    "password",
    "project_id",
    "project_name",
    "project_domain_id",
    "project_domain_name",
    "domain_id",
    "domain_name",
    "system_scope",
    "token",
    "passcode",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
    "endpoint",
    "region_name",
    "interface",
    "image_endpoint_override",
    "cacert",
    "cert",
    "key",
    "insecure",
)


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """What ``--os-cloud`` and the other ``--os-*`` options said. The values have no repr."""

    cloud: str | None = None
    """A clouds.yaml entry; wins over the inventory's, which wins over ``OS_CLOUD``."""
    values: Mapping[str, str | bool] = field(default_factory=dict, repr=False)
    """Name of ``OPTION_NAMES`` -> value, only those that were given; win over clouds.yaml and ``OS_*``."""
