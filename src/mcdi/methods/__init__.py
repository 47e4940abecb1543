"""The methods that come with the package; importing this room registers them, in the order of tables."""

from mcdi.methods.base import METHODS, WeightGenerator, all_methods, make_method, method_spec, register_method
from mcdi.methods.mcdi import method as _mcdi  # noqa: F401

from mcdi.methods.baselines import closed_form, finetune, reptile, maml  # noqa: F401  # isort: skip
from mcdi.methods.published import meta_hypernetwork, ghn3, icis, p_diff, d2nwg, metadiff, ocd, vae  # noqa: F401  # isort: skip

__all__ = ["METHODS", "WeightGenerator", "all_methods", "make_method", "method_spec", "register_method"]
