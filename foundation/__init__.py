"""What every layer uses: errors, registry, durable files, processes."""
