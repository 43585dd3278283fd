"""The report pages: one self-contained HTML file per verification, and an index of them all."""
