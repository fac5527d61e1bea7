"""How the toy models of trainer/toy were made from nothing: `python -m benchmarks.toy_world -h`."""
