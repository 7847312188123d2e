"""Advice on recipes: rules that look at a recipe, its data and its model, and say what is likely to go wrong and why."""
