"""What is said and seen while a run goes on: progress, remarks, faults, validation, stopping."""
