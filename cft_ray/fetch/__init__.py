"""`cft-ray fetch`: what a grid takes from the internet, copied once to where machines without it can read it.

`needs` reads off a plan what that is, `hub` asks the Hugging Face hub which files at which commit, `copy` brings them to a
folder or bucket, `punkt` does the same for nltk's data. What comes out is described in `cft_ray.artifacts.fetched`; a grid
that names it (`fetched: URI`) is planned and run from it, with the fingerprints of a grid that pins the same commits.
"""
