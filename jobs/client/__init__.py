"""The owner's side of a job: pairs, pictures, submission, watching, results, checks."""
