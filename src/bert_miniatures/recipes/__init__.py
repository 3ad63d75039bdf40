"""Recipes: each reads like the method section of a paper; no tensor code."""
