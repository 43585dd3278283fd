"""Why a tensor differs."""
