"""How the hosts of one site read an image from each other: see ``docs/distribution.md``."""
