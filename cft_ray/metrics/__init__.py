"""Table schemas, the reporting actor that writes the tables, and reading them back as polars LazyFrames."""
