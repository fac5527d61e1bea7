"""Runs on machines that are somebody else's: a Slurm cluster through submitit, a rented GPU through SkyPilot."""
