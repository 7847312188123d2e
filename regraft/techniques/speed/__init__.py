"""Techniques that leave the result as it is and save time or memory: compiling, memory formats, recomputing, preparing ahead."""
