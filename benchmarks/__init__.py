"""What is measured, and how; nothing here is installed with the package."""
