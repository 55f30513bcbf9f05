"""The grid: what to run, from YAML to cells. Pure: no Ray, no torch."""
