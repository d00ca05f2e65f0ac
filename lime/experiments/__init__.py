"""Experiments: records of runs, sweeps that resume, tables and figures from records. Imports no model library."""
