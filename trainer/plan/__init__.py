"""What a run will do, computed before torch loads: its length, its marks, its rates, its memory."""
