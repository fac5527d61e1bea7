"""What a file or an option is: explained from headers and tables alone."""
