"""`kohyakit ui`: the commands' own functions as pages in the browser. One local server, never torch."""
