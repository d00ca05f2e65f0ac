"""What a person does with a data root before training: fetch, unpack, check and count (`scripts/data.py`)."""
