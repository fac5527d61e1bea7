"""From a plan to a running process, its record, and how a run goes on."""
