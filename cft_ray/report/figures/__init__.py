"""The study's figures, one module each. ``draw(tables)`` gives finished `matplotlib` figures by file name (no suffix).

None of them opens a window or keeps state: figures are made without pyplot.
"""
