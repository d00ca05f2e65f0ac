"""What a trained run learned: its routing, its updates and its hidden states on a bounded number of test rows."""
