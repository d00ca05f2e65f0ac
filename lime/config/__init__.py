"""What a command line may say, and the checks. Everything that a person starts imports this first."""

import importlib.util
import sys

if importlib.util.find_spec("hydra") is None:
    sys.stderr.write(
        f"error: hydra is not installed for {sys.executable}: run `make setup` once, then `source "
        ".venv/bin/activate` in every new terminal (or .venv/bin/python in place of python)\n"
    )
    sys.exit(2)
