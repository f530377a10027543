"""Where images come from: Glance, or a folder of image files."""
