"""The inventory: from YAML text to model types."""
