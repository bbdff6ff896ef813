from table_cases import here, stub  # noqa: F401
