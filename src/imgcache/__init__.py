"""imgcache: puts cloud images into the image caches of compute hosts before they are needed."""

__version__ = "0.1.0"
