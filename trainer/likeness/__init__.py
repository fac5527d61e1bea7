"""Which of many images show the same: the vectorised search behind `dataset check`."""
