"""How the generated pages are made, one module each where their table does not say it itself."""
