"""Framework-free code shared by both sides: stdlib, numpy, OpenCV, YAML and pydantic only."""
