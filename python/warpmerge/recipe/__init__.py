"""Recipes: YAML to a validated description of a merge."""

from ..models.reference import ModelRef
from .model import Recipe, RecipeModel
from .resolve import Layers, Resolver

__all__ = ["Layers", "ModelRef", "Recipe", "RecipeModel", "Resolver"]
