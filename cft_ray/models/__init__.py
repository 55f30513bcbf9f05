"""What is demanded of a model, and the one place that loads one: training, insight and generation share it."""
