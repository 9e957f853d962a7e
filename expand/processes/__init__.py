"""Work in processes of their own, which may die or hang without taking anything else down."""
