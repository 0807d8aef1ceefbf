"""What connects a pool with other libraries. Each module needs the extra of its name."""
