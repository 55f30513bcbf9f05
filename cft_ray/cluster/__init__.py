"""Running on a cluster: the launcher configuration `cluster.yaml`; `docs/cluster.md` says how to use it."""
