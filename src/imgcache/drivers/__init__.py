"""One module per virtualisation back end that has an image cache."""
