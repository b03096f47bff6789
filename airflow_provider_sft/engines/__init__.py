"""What turns the trainer's pod into a job: one module for each of Kubernetes' own engines. Pure: no client, no Airflow."""
