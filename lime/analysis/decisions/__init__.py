"""How much of a mixture zero-parameter routing is: its decisions on test rows, frozen and after training."""
