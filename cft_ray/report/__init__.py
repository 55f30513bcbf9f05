"""Tables and figures of the study, drawn from the Parquet tables alone.

`tables` gathers a grid's rows, `figures` draws them (one module a figure), `correlation` asks whether similarity predicts
forgetting, and `write` puts everything into a folder.
"""
