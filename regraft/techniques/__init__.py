"""Techniques: frozen options that edit a recipe before it runs, one idea a file, in folders by what they are for."""
