"""`kohyakit report`: one HTML page of a run, that needs nothing but itself."""
