"""The values that a recipe of whole models comes to."""

from warpmerge.recipe import Resolver


def resolved(recipe, layers, name):
    """The parameters for the tensor `name`."""
    return Resolver(recipe.slices[0]).values(name, layers.t(name))
