"""Finished stages on disk or in an object store: storage, manifests, the artifact store, leases. No Ray, no torch."""
