"""The soak: half an hour at 80 % of the peak with everything that goes wrong, and nothing may grow. `cli.py` runs it."""
