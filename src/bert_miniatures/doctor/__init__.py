"""What is wrong with a machine, an installation, a model folder, data or a planned run: `checks.py` has the table."""
