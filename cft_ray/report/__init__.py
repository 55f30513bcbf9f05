"""Tables and figures of the study, drawn from the Parquet tables alone."""
