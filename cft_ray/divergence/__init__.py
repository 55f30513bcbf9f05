"""How far the next-token distributions of two models lie apart, on given rows."""
