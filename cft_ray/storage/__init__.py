"""The one door to folders and object stores: conditional writes, patience with what is transient. No Ray, torch, pyarrow."""
