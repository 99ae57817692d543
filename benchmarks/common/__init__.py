"""What several commands share: result files, tables and figures; ordinary classifiers to start from."""
