"""A trained model judged by people's lists: measures, baselines, tables and the report."""
