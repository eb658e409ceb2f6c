"""Settings: what there is (schema.py) and how it is read (load.py)."""
