"""What a run has imported when it ends: imported once, by the process that forks others (`tests.processes`)."""
