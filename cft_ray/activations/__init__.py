"""Hidden activations of a model: their means, their variance, and how both change between two models."""
