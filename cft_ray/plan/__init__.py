"""The plan: cells to a graph of unique stages, why a stage is new, what it will take. Pure: no Ray, no torch."""
