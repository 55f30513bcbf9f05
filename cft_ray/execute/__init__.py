"""A plan as one Ray Tune experiment: order and admission, leases and artifacts around each stage, live progress.

Importing this package sets Ray's environment variables (see `environment`), so that they are there before Ray is.
"""

from cft_ray.execute import environment

environment.prepare()
