"""The server's side of a job: task graph, scheduler, executors and the driver."""
