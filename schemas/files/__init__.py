"""What is inside a file, from its header alone; how files are read and written whole; what a run folder holds."""
