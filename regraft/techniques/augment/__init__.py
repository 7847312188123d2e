"""Techniques that change how examples look and leave their labels as they are."""
