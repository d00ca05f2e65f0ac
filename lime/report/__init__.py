"""Self-contained HTML reports of runs and sweeps: one file each, no script, no network."""
