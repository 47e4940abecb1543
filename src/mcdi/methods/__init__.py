"""The methods by name: whoever makes, lists or adds one starts here."""

from mcdi.methods.base import METHODS, MethodSpec, WeightGenerator, all_methods, make_method, method_spec, register_method

__all__ = ["METHODS", "MethodSpec", "WeightGenerator", "all_methods", "make_method", "method_spec", "register_method"]
