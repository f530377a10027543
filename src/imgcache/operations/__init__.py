"""What the commands do: each operation plans (reads only), then executes."""
