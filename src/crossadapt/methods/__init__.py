"""One file per published way to adapt; `crossadapt.adapters.registry` finds them by file name."""
