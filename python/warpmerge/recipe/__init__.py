"""Recipes: YAML to a validated description of a merge."""

from .model import ModelRef, Recipe, RecipeModel
from .resolve import Layers, Resolver

__all__ = ["Layers", "ModelRef", "Recipe", "RecipeModel", "Resolver"]
