"""Search over the fields of a recipe: spaces, methods, workers that may be killed, and the page that shows what came out."""
