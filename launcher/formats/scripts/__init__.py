"""Readers of scripts: bash, PowerShell and cmd.exe, each to the words of its commands as the shell would pass them."""
