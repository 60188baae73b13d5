"""The store, a folder or S3: its layout, its records, and how it is reached."""
