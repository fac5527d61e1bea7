"""From a draft to a plan: a checked config with its numbers. Pure: nothing is written."""
