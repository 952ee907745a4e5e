"""From logged runs to the benchmark table: MLflow -> DataFrame -> statistics -> tables.

Knows neither torch nor how a run is trained; `python -m analysis` writes the table.
"""
