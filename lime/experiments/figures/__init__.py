"""Figures of sweeps from their records, in one style. Imports matplotlib without a display."""
