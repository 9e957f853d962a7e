"""Work in child processes, which may die or hang without harm to the rest."""
