"""How the controller reaches a host and talks with the helper there."""
