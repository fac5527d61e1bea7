"""A drawn world and small models of it, for learning and testing only; see docs/learning.md."""
