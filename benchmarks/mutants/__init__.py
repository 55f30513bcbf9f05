"""How many small wrong changes the tests notice, room by room: ``make mutants ROOM=metrics``."""
