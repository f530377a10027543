"""Opens the image service that the inventory and the command line name."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from imgcache.errors import ConfigError, Problem

if TYPE_CHECKING:
    from imgcache.images.base import ImageService
    from imgcache.images.options import CloudOptions
    from imgcache.model import ImageServiceSettings


def open_image_service(settings: ImageServiceSettings, options: CloudOptions) -> ImageService:
    """Return the image service; asks nothing of the network yet. Blocks: imports heavy libraries.

    Raises:
        ConfigError: what is configured is incomplete or wrong.
    """
    if settings.kind == "directory":
        from imgcache.images.directory import DirectoryImageService  # noqa: PLC0415 - only where used

        if settings.path is None:
            problem = Problem(
                "image_service.path", "is missing", "name the folder of the image files"
            )
            message = "the directory image service has no folder"
            raise ConfigError(message, [problem])
        return DirectoryImageService(settings.path)

    # From here on this process holds passwords and tokens, which no core dump may.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # keystoneauth1, openstacksdk and requests take a third of a second to import
    from imgcache.images.glance import GlanceImageService  # noqa: PLC0415
    from imgcache.images.keystone import open_cloud  # noqa: PLC0415

    return GlanceImageService(
        open_cloud(settings, options),
        host_endpoint=settings.host_endpoint,
        host_interface=settings.host_interface,
    )
