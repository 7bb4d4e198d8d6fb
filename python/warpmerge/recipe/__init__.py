"""Recipes: YAML to a validated description of a merge."""

from ..models.reference import ModelRef
from .model import Recipe
from .resolve import Layers, Resolver
from .slices import RecipeModel, Slice

__all__ = ["Layers", "ModelRef", "Recipe", "RecipeModel", "Resolver", "Slice"]
