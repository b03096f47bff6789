"""What the DAGs in dags/ do, kept out of their files: prepare real data, ask a model before and after, compare."""
