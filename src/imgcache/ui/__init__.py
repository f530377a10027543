"""What people and scripts see: progress, tables, JSON."""
