"""Sentence embeddings of data sets, and their similarity (DES)."""
